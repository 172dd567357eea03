//! Rules of Rust files: a purpose on each, no long ones, effect levels, no paths of one machine.

use super::scan::{mask, test_lines};
use super::{File, Problem};
use std::collections::BTreeMap;

/// Lines of code in a file, without blank lines, comments and tests.
const MAX_LINES: usize = 500;
/// Files that are longer, with what they have. It may only shrink.
const LONG_FILES: &str = include_str!("../../long-files.txt");
/// How each `pure/` folder begins its `mod.rs`.
const PURE: &str = "#![deny(clippy::disallowed_methods, clippy::disallowed_types)]";

/// Each Rust file says what it is for.
pub fn module_docs(files: &[File]) -> Vec<Problem> {
    // Where else than at its beginning a `//!` may stand in a file, the compiler knows.
    let without = |file: &&File| is_rust(file) && !file.text.lines().any(|line| line.starts_with("//!"));
    let problem = |file: &File| Problem::new(&file.path, 1, "begin it with `//!` and what it is for");
    files.iter().filter(without).map(problem).collect()
}

/// No file grows past the limit, and those that are past it only shrink.
pub fn lengths(files: &[File]) -> Vec<Problem> {
    against(files, LONG_FILES)
}

fn against(files: &[File], list: &str) -> Vec<Problem> {
    let mut allowed: BTreeMap<&str, usize> = list
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(path, lines)| Some((path, lines.trim().parse().ok()?)))
        .collect();
    let mut problems = Vec::new();
    for file in files.iter().filter(|file| is_rust(file) && !is_test(file)) {
        let lines = code_lines(&file.text);
        let listed = allowed.remove(file.path.as_str());
        let limit = listed.unwrap_or(MAX_LINES);
        if lines > limit {
            let what = format!("{lines} lines of code, {limit} are allowed: split it");
            problems.push(Problem::new(&file.path, 0, what));
        } else if let Some(listed) = listed
            && lines < listed
        {
            let what = format!("{lines} lines of code now: lower its number in xtask/long-files.txt");
            problems.push(Problem::new(&file.path, 0, what));
        }
    }
    let gone = |(path, _): (&str, usize)| {
        Problem::new("xtask/long-files.txt", 0, format!("{path} is gone: remove its line"))
    };
    problems.extend(allowed.into_iter().map(gone));
    problems
}

/// `pure/` folders forbid effects, and unsafe code lives in `sys` alone.
pub fn levels(files: &[File]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for file in files.iter().filter(|file| is_rust(file)) {
        let folders: Vec<&str> = file.path.split('/').collect();
        let pure = folders.contains(&"pure");
        if pure && file.path.ends_with("pure/mod.rs") && !file.text.contains(PURE) {
            problems.push(Problem::new(&file.path, 0, format!("it must have the line {PURE}")));
        }
        let module = folders.iter().any(|folder| *folder == "sys" || *folder == "sys.rs");
        let masked = mask(&file.text);
        for (number, line) in masked.lines().enumerate() {
            if !module && has_word(line, "unsafe") {
                let what = "unsafe code belongs into a `sys` module";
                problems.push(Problem::new(&file.path, number + 1, what));
            }
            if pure && (line.contains("allow(clippy::disallowed") || line.contains("tokio::spawn")) {
                let what = "`pure/` has no effects, and no leave to have them";
                problems.push(Problem::new(&file.path, number + 1, what));
            }
        }
    }
    problems
}

/// No file knows where one person keeps the repository, or their home.
pub fn private_paths(files: &[File], root: &str, home: &str) -> Vec<Problem> {
    // Root's home is the same everywhere, and so is a repository right below `/`.
    let private = [root, home].into_iter().filter(|path| path.matches('/').count() > 1);
    let needles: Vec<&str> = private.chain(["/Users/"]).collect();
    let mut problems = Vec::new();
    for file in files.iter().filter(|file| !file.path.starts_with("xtask/src/check/")) {
        for (number, line) in file.text.lines().enumerate() {
            if let Some(found) = needles.iter().find(|needle| line.contains(**needle)) {
                let what = format!("{found} is a path of one machine");
                problems.push(Problem::new(&file.path, number + 1, what));
            }
        }
    }
    problems
}

fn is_rust(file: &File) -> bool {
    file.path.ends_with(".rs")
}

/// Tests, examples and benches may be as long as they need.
fn is_test(file: &File) -> bool {
    file.path.split('/').rev().skip(1).any(|folder| matches!(folder, "tests" | "examples" | "benches"))
        || file.path.ends_with("/tests.rs")
}

fn code_lines(text: &str) -> usize {
    let masked = mask(text);
    let test = test_lines(&masked);
    masked.lines().enumerate().filter(|(number, line)| !test[number + 1] && !line.trim().is_empty()).count()
}

fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        !line[..at].ends_with(is_word) && !line[at + word.len()..].starts_with(is_word)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> File {
        File { path: path.into(), text: text.into() }
    }

    #[test]
    fn a_file_without_a_purpose_is_found() {
        let files = [file("a/src/x.rs", "fn a() {}"), file("a/src/y.rs", "#![x]\n//! Good.\n")];
        assert_eq!(module_docs(&files).len(), 1);
    }

    #[test]
    fn length_counts_code_alone_and_only_shrinks() {
        let code = "//! Doc.\n\n// why\nfn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\n";
        assert_eq!(code_lines(code), 1);
        let long = "fn a() {}\n".repeat(MAX_LINES + 1);
        assert_eq!(against(&[file("a/src/x.rs", &long)], "").len(), 1);
        assert_eq!(against(&[file("a/tests/x.rs", &long)], ""), []);
        assert_eq!(against(&[file("a/src/x.rs", &long)], "a/src/x.rs 501"), []);
        assert!(against(&[file("a/src/x.rs", &long)], "a/src/x.rs 510")[0].what.contains("lower"));
        assert!(against(&[], "a/src/x.rs 510")[0].what.contains("gone"));
    }

    #[test]
    fn levels_are_kept_apart() {
        assert_eq!(levels(&[file("a/src/pure/mod.rs", "//! x\n")]).len(), 1);
        assert_eq!(levels(&[file("a/src/pure/mod.rs", &format!("//! x\n{PURE}\n"))]), []);
        assert_eq!(levels(&[file("a/src/pure/b.rs", "fn a() { tokio::spawn(x) }")]).len(), 1);
        assert_eq!(levels(&[file("a/src/b.rs", "unsafe { x() }")]).len(), 1);
        assert_eq!(
            levels(&[file("a/src/sys/b.rs", "unsafe { x() }"), file("a/src/sys.rs", "unsafe {}")]),
            []
        );
        assert_eq!(
            levels(&[file("a/src/b.rs", "// unsafe\n#![expect(unsafe_code)] let s = \"unsafe\";")]),
            []
        );
    }

    #[test]
    fn paths_of_one_machine_are_found() {
        let files =
            [file("a.md", "see /srv/me/repo/a"), file("b.sh", "cd /home/me/x"), file("c.md", "/root/x")];
        assert_eq!(private_paths(&files, "/srv/me/repo", "/home/me").len(), 2);
        assert_eq!(private_paths(&files, "/x", "/root"), []);
    }
}
