//! Reads Rust source far enough to tell code from comments, texts and tests.
//!
//! The one rule: line numbers stay, so that findings can name them. What is left out becomes spaces.

use std::ops::Range;

/// A word or a sign of the code, and the line it stands in (from 1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    pub text: String,
    pub line: usize,
}

/// Returns the source with comments, string and character literals blanked.
pub fn code_only(source: &str) -> String {
    let chars: Vec<char> = source.chars().collect();
    let mut code = String::with_capacity(source.len());
    let mut at = 0;
    while at < chars.len() {
        match literal_or_comment(&chars, at) {
            Some(end) => {
                code.extend(chars[at..end].iter().map(|&c| if c == '\n' { '\n' } else { ' ' }));
                at = end;
            }
            None => {
                code.push(chars[at]);
                at += 1;
            }
        }
    }
    code
}

/// Returns where the comment or literal that starts at `at` ends; `None` if none starts there.
fn literal_or_comment(chars: &[char], at: usize) -> Option<usize> {
    let starts = |text: &str| text.chars().enumerate().all(|(i, c)| chars.get(at + i) == Some(&c));
    if starts("//") {
        return Some(chars[at..].iter().position(|&c| c == '\n').map_or(chars.len(), |n| at + n));
    }
    if starts("/*") {
        return Some(end_of_block_comment(chars, at));
    }
    match chars[at] {
        '"' => Some(end_of_quoted(chars, at + 1, '"')),
        '\'' => is_character(chars, at).then(|| end_of_quoted(chars, at + 1, '\'')),
        'r' | 'b' | 'c' if at == 0 || !is_word(chars[at - 1]) => raw_string(chars, at),
        _ => None,
    }
}

/// Block comments nest.
fn end_of_block_comment(chars: &[char], start: usize) -> usize {
    let (mut at, mut depth) = (start, 0);
    while at < chars.len() {
        match (chars[at], chars.get(at + 1)) {
            ('/', Some('*')) => (at, depth) = (at + 2, depth + 1),
            ('*', Some('/')) => (at, depth) = (at + 2, depth - 1),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    at
}

fn end_of_quoted(chars: &[char], mut at: usize, quote: char) -> usize {
    while at < chars.len() {
        match chars[at] {
            '\\' => at += 2,
            c if c == quote => return at + 1,
            _ => at += 1,
        }
    }
    chars.len()
}

/// `'a'` and `'\n'` are characters, `'a` is a lifetime.
fn is_character(chars: &[char], at: usize) -> bool {
    chars.get(at + 1) == Some(&'\\') || chars.get(at + 2) == Some(&'\'')
}

/// Reads `r"..."`, `r#"..."#` and their relatives with `b` and `c`; ordinary `b"..."` is left to the quote.
fn raw_string(chars: &[char], at: usize) -> Option<usize> {
    let prefix = chars[at..].iter().take_while(|c| c.is_ascii_alphabetic()).take(3).count();
    if chars[at + prefix - 1] != 'r' || prefix > 2 {
        return None;
    }
    let hashes = chars[at + prefix..].iter().take_while(|&&c| c == '#').count();
    let open = at + prefix + hashes;
    if chars.get(open) != Some(&'"') {
        return None;
    }
    let closes = |i: usize| chars[i] == '"' && (1..=hashes).all(|n| chars.get(i + n) == Some(&'#'));
    let end = (open + 1..chars.len()).find(|&i| closes(i));
    Some(end.map_or(chars.len(), |i| i + 1 + hashes))
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Blanks every item under `#[cfg(test)]` of what `code_only` returned.
pub fn without_tests(code: &str) -> String {
    let mut rest = code.to_owned();
    for item in test_items(code).into_iter().rev() {
        let blank: String =
            code[item.clone()].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
        rest.replace_range(item, &blank);
    }
    rest
}

/// Returns where the items under `#[cfg(test)]` stand in what `code_only` returned.
pub fn test_items(code: &str) -> Vec<Range<usize>> {
    const MARK: &str = "#[cfg(test)]";
    let mut items = Vec::new();
    let mut from = 0;
    while let Some(offset) = code[from..].find(MARK) {
        let start = from + offset;
        from = end_of_item(code, start + MARK.len());
        items.push(start..from);
    }
    items
}

/// An item ends with its semicolon or with the brace that closes its first one.
fn end_of_item(code: &str, start: usize) -> usize {
    let mut depth = 0;
    for (offset, c) in code[start..].char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if (c == '}' || c == ';') && depth == 0 {
            return start + offset + 1;
        }
    }
    code.len()
}

/// Splits what `code_only` returned into words and signs; `::` is one sign.
pub fn tokens(code: &str) -> Vec<Token> {
    let mut found = Vec::new();
    for (number, text) in code.lines().enumerate() {
        let chars: Vec<char> = text.chars().collect();
        let mut at = 0;
        while at < chars.len() {
            let word = chars[at..].iter().take_while(|&&c| is_word(c)).count();
            let length = match chars[at..] {
                [':', ':', ..] => 2,
                _ => word.max(1),
            };
            let text: String = chars[at..at + length].iter().collect();
            if !text.trim().is_empty() {
                found.push(Token { text, line: number + 1 });
            }
            at += length;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_texts_are_no_code_and_lines_stay() {
        let source = "let a = \"tokio // \\\" x\"; // tokio\n/* tokio /* nested */\ntokio */ let b = r#\"to\"kio\"#;\n";
        let code = code_only(source);
        assert!(!code.contains("tokio") && !code.contains("kio"), "{code}");
        assert!(code.contains("let a =") && code.contains("let b ="), "{code}");
        assert_eq!(code.lines().count(), source.lines().count());
    }

    #[test]
    fn lifetimes_do_not_open_a_character() {
        let code = code_only(
            "fn f<'a>(x: &'a str) -> char { tokio(); '\"' } // '\nlet c = '\\''; rand();",
        );
        assert!(code.contains("tokio") && code.contains("rand"), "{code}");
    }

    #[test]
    fn names_that_end_in_r_do_not_open_a_raw_text() {
        assert!(code_only("for x in br { error(\"a\"); tokio() }").contains("tokio"));
        assert!(!code_only("br#\"tokio\"#").contains("tokio"));
    }

    #[test]
    fn test_modules_are_left_out_to_their_closing_brace() {
        let code = without_tests(
            "fn a() {}\n#[cfg(test)]\nmod tests { fn b() { rand(); } }\nfn c() {}\n#[cfg(test)]\nmod more;\n",
        );
        assert!(code.contains("fn a") && code.contains("fn c"), "{code}");
        assert!(!code.contains("rand") && !code.contains("more"), "{code}");
        assert_eq!(code.lines().count(), 6);
    }
}
