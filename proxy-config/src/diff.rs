//! The difference of two texts, line by line, as people know it from `diff -u`.

use similar::TextDiff;

/// Returns the lines of a unified diff; none where the texts are equal.
pub fn unified(path: &str, old: &str, new: &str) -> Vec<String> {
    let diff = TextDiff::from_lines(old, new);
    let text = diff.unified_diff().context_radius(2).header(path, path).to_string();
    text.lines().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_have_no_difference_and_others_show_theirs() {
        assert_eq!(unified("x", "a\nb\n", "a\nb\n"), Vec::<String>::new());
        let lines = unified("x", "a\nb\n", "a\nc\n");
        assert_eq!(lines, ["--- x", "+++ x", "@@ -1,2 +1,2 @@", " a", "-b", "+c"]);
    }
}
