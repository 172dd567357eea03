//! Links of the documents lead somewhere: files exist, and headings too.

use super::{File, Problem};
use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

/// Checks each relative link of each Markdown file.
pub fn check(root: &Path, files: &[File]) -> Vec<Problem> {
    let documents: HashMap<&str, &str> = files
        .iter()
        .filter(|file| file.path.ends_with(".md"))
        .map(|file| (file.path.as_str(), file.text.as_str()))
        .collect();
    let mut problems = Vec::new();
    for (path, text) in &documents {
        for (line, target) in links(text) {
            if let Some(why) = broken(root, &documents, path, &target) {
                problems.push(Problem::new(*path, line, format!("the link {target} leads nowhere: {why}")));
            }
        }
    }
    problems
}

fn broken(root: &Path, documents: &HashMap<&str, &str>, from: &str, target: &str) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
    let path = match file {
        "" => from.to_owned(),
        file => normal(&Path::new(from).parent().unwrap_or(Path::new("")).join(file))?,
    };
    if !root.join(&path).exists() {
        return Some(format!("there is no {path}"));
    }
    let text = documents.get(path.as_str())?;
    let found = anchor.is_empty() || headings(text).any(|heading| heading == anchor);
    (!found).then(|| format!("{path} has no heading #{anchor}"))
}

/// The path without `.` and `..`.
fn normal(path: &Path) -> Option<String> {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => out.push(name),
            Component::CurDir => {}
            Component::ParentDir => {
                out.pop();
            }
            Component::RootDir | Component::Prefix(_) => return Some(path.to_string_lossy().into_owned()),
        }
    }
    Some(out.to_string_lossy().into_owned())
}

/// Targets of `[text](target)` with their lines, outside code.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in prose(text) {
        let mut rest = line.as_str();
        while let Some(at) = rest.find("](") {
            rest = &rest[at + 2..];
            let end = rest.find([')', ' ']).unwrap_or(rest.len());
            found.push((number, rest[..end].to_owned()));
        }
    }
    found
}

/// The anchors that GitHub gives to headings.
fn headings(text: &str) -> impl Iterator<Item = String> {
    let lines: Vec<String> = prose_with_code(text).into_iter().map(|(_, line)| line).collect();
    lines.into_iter().filter(|line| line.starts_with('#')).map(|line| {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        title
            .chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
            .map(|c| if c == ' ' { '-' } else { c })
            .collect()
    })
}

/// Lines outside fences, with inline code blanked.
fn prose(text: &str) -> Vec<(usize, String)> {
    let blank = |line: String| {
        let odd = |(number, piece): (usize, &str)| {
            if number % 2 == 0 { piece.to_owned() } else { " ".repeat(piece.len()) }
        };
        line.split('`').enumerate().map(odd).collect::<Vec<_>>().join("`")
    };
    prose_with_code(text).into_iter().map(|(number, line)| (number, blank(line))).collect()
}

fn prose_with_code(text: &str) -> Vec<(usize, String)> {
    let mut fenced = false;
    let mut lines = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            lines.push((number + 1, line.to_owned()));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> Vec<Problem> {
        let root = tempfile::tempdir().expect("folder");
        std::fs::create_dir(root.path().join("docs")).expect("folder");
        let other = "# First Part\n## What `x` is, and why\n";
        let files = [("docs/a.md", text), ("b.md", other)].map(|(path, text)| {
            std::fs::write(root.path().join(path), text).expect("file");
            File { path: path.into(), text: text.into() }
        });
        check(root.path(), &files)
    }

    #[test]
    fn good_links_are_left_alone() {
        let text = "[x](../b.md) [y](../b.md#first-part) [z](#here) [w](https://example.org/#q)\n# Here\n\
                    [v](../b.md#what-x-is-and-why) `[not](a-link)`\n```\n[nor](this)\n```\n";
        assert_eq!(problems(text), []);
    }

    #[test]
    fn broken_links_are_found_with_their_line() {
        let found = problems("fine\n[x](../c.md) [y](../b.md#second)\n[z](#nowhere)\n");
        assert_eq!(found.iter().map(|problem| problem.line).collect::<Vec<_>>(), [2, 2, 3]);
    }
}
