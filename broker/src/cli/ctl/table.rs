//! Aligned tables for people.

/// Rows under a heading, each column as wide as its widest cell.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table of these columns, without rows.
    pub fn new(heading: &[&str]) -> Self {
        Self {
            rows: vec![heading.iter().map(|name| (*name).to_owned()).collect()],
        }
    }

    /// Adds a row; what is missing is empty.
    pub fn push(&mut self, cells: Vec<String>) {
        // A terminal shall not obey what a client chose as its name.
        let clean = |cell: String| {
            cell.chars()
                .map(|char| if char.is_control() { '\u{fffd}' } else { char })
                .collect()
        };
        self.rows.push(cells.into_iter().map(clean).collect());
    }

    /// The table as text, a line for each row.
    pub fn text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or_default();
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or_default()
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let line: Vec<String> = row
                .iter()
                .zip(&widths)
                .map(|(cell, width)| format!("{cell:<width$}"))
                .collect();
            text.push_str(line.join("  ").trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["NAME", "N"]);
        table.push(vec!["é".into(), "10".into()]);
        table.push(vec!["longer".into()]);
        assert_eq!(table.text(), "NAME    N\né       10\nlonger\n");
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        let mut table = Table::new(&["NAME"]);
        table.push(vec!["a\u{1b}[2J".into()]);
        assert_eq!(table.text(), "NAME\na\u{fffd}[2J\n");
    }
}
