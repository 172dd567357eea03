//! Rust source without its comments and texts, so that what is left can be counted and searched.

/// The source with comments blanked out and texts as `_`; lines and columns stay where they are.
pub fn mask(source: &str) -> String {
    let chars: Vec<char> = source.chars().collect();
    let mut out = String::with_capacity(source.len());
    let mut at = 0;
    while at < chars.len() {
        let comment = comment(&chars, at).map(|end| (end, ' '));
        match comment.or_else(|| text(&chars, at).map(|end| (end, '_'))) {
            Some((end, filler)) => {
                let end = end.min(chars.len());
                out.extend(chars[at..end].iter().map(|c| if *c == '\n' { '\n' } else { filler }));
                at = end;
            }
            None => {
                out.push(chars[at]);
                at += 1;
            }
        }
    }
    out
}

/// Lines, from 1, that belong to an item under `#[cfg(test)]`.
pub fn test_lines(masked: &str) -> Vec<bool> {
    let lines: Vec<&str> = masked.lines().collect();
    let mut test = vec![false; lines.len() + 1];
    let mut line = 0;
    while line < lines.len() {
        if !lines[line].trim_start().starts_with("#[cfg(test)]") {
            line += 1;
            continue;
        }
        let mut depth = 0_i32;
        let mut opened = false;
        while line < lines.len() {
            test[line + 1] = true;
            for c in lines[line].chars() {
                depth += i32::from(c == '{') - i32::from(c == '}');
                opened |= c == '{';
            }
            let ended = if opened { depth == 0 } else { lines[line].trim_end().ends_with(';') };
            line += 1;
            if ended {
                break;
            }
        }
    }
    test
}

/// Where the comment that begins here ends.
fn comment(chars: &[char], at: usize) -> Option<usize> {
    match chars.get(at..at + 2)? {
        ['/', '/'] => Some(chars[at..].iter().position(|c| *c == '\n').map_or(chars.len(), |len| at + len)),
        ['/', '*'] => {
            let (mut depth, mut next) = (1, at + 2);
            while depth > 0 && next < chars.len() {
                match chars.get(next..next + 2) {
                    Some(['/', '*']) => (depth, next) = (depth + 1, next + 2),
                    Some(['*', '/']) => (depth, next) = (depth - 1, next + 2),
                    _ => next += 1,
                }
            }
            Some(next)
        }
        _ => None,
    }
}

/// Where the string or character that begins here ends.
fn text(chars: &[char], at: usize) -> Option<usize> {
    match chars[at] {
        '"' => Some(quoted(chars, at + 1, '"')),
        'r' if at == 0 || !is_word(chars[at - 1]) || chars[at - 1] == 'b' => {
            let hashes = chars[at + 1..].iter().take_while(|c| **c == '#').count();
            let open = at + 1 + hashes;
            if chars.get(open) != Some(&'"') {
                return None;
            }
            let mut next = open + 1;
            while next < chars.len() {
                let closed = chars[next] == '"'
                    && chars[next + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes;
                if closed {
                    return Some(next + 1 + hashes);
                }
                next += 1;
            }
            Some(next)
        }
        // A character, not a lifetime.
        '\'' if chars.get(at + 1) == Some(&'\\') => Some(quoted(chars, at + 1, '\'')),
        '\'' if chars.get(at + 2) == Some(&'\'') => Some(at + 3),
        _ => None,
    }
}

fn quoted(chars: &[char], mut at: usize, quote: char) -> usize {
    while at < chars.len() {
        match chars[at] {
            '\\' => at += 2,
            c if c == quote => return at + 1,
            _ => at += 1,
        }
    }
    at
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn comments_and_texts_are_blanked() {
        let source = "let a = \"unsafe // no\"; // unsafe\nlet b = r#\"un\"safe\"#; /* a /* b */ unsafe */ let c = '\"';\nfn f<'a>() {}";
        let masked = mask(source);
        assert!(!masked.contains("unsafe") && masked.contains("let c") && masked.contains("fn f<'a>"));
        assert_eq!(masked.lines().count(), source.lines().count());
        assert!(!mask("b\"{\\\"\" br\"{\" b'{' '{'").contains('{'));
    }

    #[test]
    fn test_modules_are_found_by_their_braces() {
        let source = "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() { {} }\n}\nfn c() {}\n#[cfg(test)]\nmod more;\nfn d() {}\n";
        let test = test_lines(&mask(source));
        let lines: Vec<usize> = (1..test.len()).filter(|line| test[*line]).collect();
        assert_eq!(lines, [2, 3, 4, 5, 7, 8]);
    }

    proptest! {
        #[test]
        fn no_source_makes_it_panic_or_lose_a_line(source in "[a\"'/*{}#r\\\\\n ]{0,80}") {
            let masked = mask(&source);
            prop_assert_eq!(masked.chars().count(), source.chars().count());
            prop_assert_eq!(test_lines(&masked).len(), masked.lines().count() + 1);
        }
    }
}
