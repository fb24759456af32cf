//! Keeps source files short enough to be read in one go. Tests at the end of a file do not count.

use super::rust_code::{code_only, test_items};

/// Above this a file does too much.
const WALL: usize = 500;
/// Above this it is worth asking.
const TARGET: usize = 300;

/// Returns the files above the wall, and a line for each that is above the target.
pub fn check(sources: &[(String, String)]) -> (Vec<String>, Vec<String>) {
    let mut findings = Vec::new();
    let mut warnings = Vec::new();
    for (path, text) in sources {
        let lines = lines_without_tests(text);
        if lines > WALL {
            findings.push(format!("{path}: {lines} lines without tests; the wall is {WALL}"));
        } else if lines > TARGET {
            warnings.push(format!(
                "{path}: {lines} lines without tests; the target is at most {TARGET}"
            ));
        }
    }
    (findings, warnings)
}

fn lines_without_tests(source: &str) -> usize {
    let code = code_only(source);
    let in_tests = test_items(&code).into_iter().map(|item| code[item].lines().count());
    source.lines().count() - in_tests.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(lines: usize, tests: usize) -> Vec<(String, String)> {
        let body = "let x = 1;\n".repeat(lines);
        let tests =
            format!("#[cfg(test)]\nmod tests {{\n{}}}\n", "\n// why\nlet y = 2;\n".repeat(tests));
        vec![("a.rs".into(), format!("{body}{tests}"))]
    }

    #[test]
    fn a_file_above_the_wall_is_found_and_one_above_the_target_is_told() {
        assert_eq!(check(&file(WALL + 1, 0)).0.len(), 1);
        assert_eq!(
            check(&file(WALL, 0)),
            (vec![], vec!["a.rs: 500 lines without tests; the target is at most 300".into()])
        );
        assert_eq!(check(&file(TARGET, 0)), (vec![], vec![]));
    }

    #[test]
    fn tests_comments_in_tests_and_their_blank_lines_do_not_count() {
        assert_eq!(lines_without_tests(&file(10, 400)[0].1), 10);
    }

    #[test]
    fn comments_of_the_code_count() {
        assert_eq!(lines_without_tests("// a\n\n/* b\nc */\nfn f() {}\n"), 5);
    }
}
