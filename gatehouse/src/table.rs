//! Tables for people: borderless columns that can be cut and grepped.

use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Row};
use std::fmt;

/// A table with a line of headings.
#[derive(Debug)]
pub struct Table(comfy_table::Table);

impl Table {
    /// A table without rows.
    #[must_use]
    pub fn new(headings: &[&str]) -> Self {
        let mut table = comfy_table::Table::new();
        table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
        table.set_header(headings.to_vec());
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        Self(table)
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.0.add_row(Row::from(cells.into_iter().collect::<Vec<_>>()));
    }

    /// Whether there is nothing but headings.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, line) in self.0.lines().enumerate() {
            if number > 0 {
                f.write_str("\n")?;
            }
            f.write_str(line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_lines_have_no_tail() {
        let mut table = Table::new(&["ID", "STATE"]);
        assert!(table.is_empty());
        table.row(["abc".into(), "running".into()]);
        table.row(["a".into(), "lost".into()]);
        assert_eq!(table.to_string(), "ID   STATE\nabc  running\na    lost");
    }
}
