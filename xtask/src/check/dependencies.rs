//! Every direct dependency is argued for in docs/dependencies.md, and nothing else stands there.

use super::{File, Problem};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

const TABLE: &str = "docs/dependencies.md";
/// Cells of a row: name, used by, what for, why it and not its rivals, who keeps it.
const CELLS: usize = 5;

/// Compares cargo's metadata with the table.
pub fn check(metadata: &Value, files: &[File]) -> Vec<Problem> {
    let Some(table) = files.iter().find(|file| file.path == TABLE) else {
        return vec![Problem::new(TABLE, 0, "it is missing")];
    };
    let (rows, mut problems) = rows(&table.text);
    let used = used(metadata);
    for (name, by) in &used {
        if !rows.contains_key(name) {
            let by = by.iter().cloned().collect::<Vec<_>>().join(", ");
            problems.push(Problem::new(TABLE, 0, format!("{name} (used by {by}) has no row")));
        }
    }
    for (name, line) in &rows {
        if !used.contains_key(name) {
            problems.push(Problem::new(TABLE, *line, format!("nobody uses {name}: remove its row")));
        }
    }
    problems
}

/// Names of the table with their lines, and rows that are not whole.
fn rows(text: &str) -> (BTreeMap<String, usize>, Vec<Problem>) {
    let mut names = BTreeMap::new();
    let mut problems = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| line.starts_with('|')) {
        let number = number + 1;
        let cells: Vec<&str> = line.trim().trim_matches('|').split(" | ").map(str::trim).collect();
        let name = cells[0];
        if name == "dependency" || name.starts_with("--") {
            continue;
        }
        if cells.len() != CELLS || cells.iter().any(|cell| cell.is_empty()) {
            problems.push(Problem::new(
                TABLE,
                number,
                format!("the row of {name} must have {CELLS} filled cells"),
            ));
        }
        // Companions that come and go together may share a row.
        for name in name.split(',').map(|name| name.trim().trim_matches('`')) {
            if names.insert(name.to_owned(), number).is_some() {
                problems.push(Problem::new(TABLE, number, format!("{name} has two rows")));
            }
        }
    }
    (names, problems)
}

/// Dependencies from registries, with the crates that name them.
fn used(metadata: &Value) -> BTreeMap<String, BTreeSet<String>> {
    let mut used: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let by = package["name"].as_str().unwrap_or_default();
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            if !dependency["path"].is_string()
                && let Some(name) = dependency["name"].as_str()
            {
                used.entry(name.to_owned()).or_default().insert(by.to_owned());
            }
        }
    }
    used
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn problems(table: &str) -> Vec<String> {
        let metadata = json!({"packages": [{"name": "a", "dependencies": [
            {"name": "serde"}, {"name": "tokio", "kind": "dev"}, {"name": "model", "path": "/model"}]}]});
        let file = File { path: TABLE.into(), text: table.into() };
        check(&metadata, &[file]).into_iter().map(|problem| problem.what).collect()
    }

    #[test]
    fn the_table_and_the_manifests_must_agree() {
        let head = "| dependency | used by | what for | why | kept by |\n|---|---|---|---|---|\n";
        let serde = "| serde | a | x | y | z |\n";
        let tokio = "| `tokio` | a | x | y | z |\n";
        let both = "| `serde`, `tokio` | a | x | y | z |\n";
        assert_eq!(problems(&format!("{head}{both}")), [""; 0]);
        assert_eq!(problems(&format!("{head}{serde}{tokio}")), [""; 0]);
        assert!(problems(&format!("{head}{serde}"))[0].contains("tokio (used by a)"));
        assert!(problems(&format!("{head}{serde}{tokio}{serde}"))[0].contains("two rows"));
        assert!(
            problems(&format!("{head}{serde}{tokio}| old | a | x | y | z |\n"))[0]
                .contains("nobody uses old")
        );
        assert!(problems(&format!("{head}{serde}| tokio | a | | y | z |\n"))[0].contains("5 filled cells"));
        let none = check(&json!({}), &[]);
        assert_eq!(none[0].what, "it is missing");
    }
}
