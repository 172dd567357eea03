//! Finds the line on the console with which a Linux kernel says that it panics.

/// What `panic()` prints first (kernel/panic.c).
const MARK: &[u8] = b"Kernel panic - not syncing";
/// Longest line that is kept; printk lines are shorter (`PRINTKRB_RECORD_MAX` is 1024), and what is behind it is
/// not needed to say why.
const MAX_LINE: usize = 512;

/// Watches the console byte by byte.
#[derive(Debug, Default)]
pub struct PanicLine {
    line: Vec<u8>,
    found: Option<String>,
}

impl PanicLine {
    /// Takes what the guest wrote.
    pub fn feed(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if *byte == b'\n' {
                self.end_of_line();
            } else if self.line.len() < MAX_LINE {
                self.line.push(*byte);
            }
        }
    }

    /// The first line that told of a panic, from the mark on.
    #[must_use]
    pub fn found(&self) -> Option<&str> {
        self.found.as_deref()
    }

    fn end_of_line(&mut self) {
        if self.found.is_none() {
            let at = self.line.windows(MARK.len()).position(|window| window == MARK);
            self.found = at.map(|at| String::from_utf8_lossy(&self.line[at..]).trim_end().to_owned());
        }
        self.line.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_line_is_found_and_kept() {
        let mut lines = PanicLine::default();
        lines.feed(
            b"[    1.0] booting\r\n[   12.3] Kernel panic - not syncing: sysrq triggered crash\r\nKernel ",
        );
        lines.feed(b"panic - not syncing: second\n");
        assert_eq!(lines.found(), Some("Kernel panic - not syncing: sysrq triggered crash"));
    }

    proptest! {
        #[test]
        fn any_split_and_any_bytes_do(before in proptest::collection::vec(any::<u8>(), 0..900), cut in 0usize..40) {
            let mut lines = PanicLine::default();
            lines.feed(&before);
            lines.feed(b"\n");
            let text = b"xx Kernel panic - not syncing: y\n";
            lines.feed(&text[..cut.min(text.len())]);
            lines.feed(&text[cut.min(text.len())..]);
            prop_assert!(lines.found().is_some());
            prop_assert!(lines.line.len() <= MAX_LINE);
        }
    }
}
