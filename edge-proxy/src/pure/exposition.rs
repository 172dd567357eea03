//! Counters as Prometheus reads them: the text format, version 0.0.4
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/>).

use std::fmt::{Display, Write};

/// What a document of this format is called.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A document, family by family. Names and label names are this program's own words.
#[derive(Debug, Default)]
pub struct Exposition {
    text: String,
}

/// What a family is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, until the process is started anew.
    Counter,
    /// Goes up and down.
    Gauge,
}

/// How often something took how long.
#[derive(Clone, Debug, PartialEq)]
pub struct Distribution {
    /// For each bound in seconds, in rising order, how many took no longer than it and longer than the one before.
    pub buckets: Vec<(f64, u64)>,
    /// How many took longer than all bounds.
    pub over: u64,
    /// Seconds of all together.
    pub sum: f64,
}

impl Exposition {
    /// A family of counters or gauges, with their labels.
    pub fn family<V: Display>(
        &mut self,
        name: &str,
        help: &str,
        kind: Kind,
        samples: impl IntoIterator<Item = (Vec<(&'static str, String)>, V)>,
    ) {
        self.head(
            name,
            help,
            match kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
            },
        );
        for (labels, value) in samples {
            self.sample(name, &labels, value);
        }
    }

    /// A family of histograms, with their labels.
    pub fn histograms(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Vec<(&'static str, String)>, Distribution)>,
    ) {
        self.head(name, help, "histogram");
        for (labels, distribution) in samples {
            let mut below = 0;
            let bucket = format!("{name}_bucket");
            let with = |bound: String| [labels.clone(), vec![("le", bound)]].concat();
            for (bound, count) in distribution.buckets {
                below += count;
                self.sample(&bucket, &with(bound.to_string()), below);
            }
            let all = below + distribution.over;
            self.sample(&bucket, &with("+Inf".to_owned()), all);
            self.sample(&format!("{name}_sum"), &labels, distribution.sum);
            self.sample(&format!("{name}_count"), &labels, all);
        }
    }

    /// The document.
    #[must_use]
    pub fn finish(self) -> String {
        self.text
    }

    fn head(&mut self, name: &str, help: &str, kind: &str) {
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    fn sample(&mut self, name: &str, labels: &[(&'static str, String)], value: impl Display) {
        if labels.is_empty() {
            return self.line(format_args!("{name} {value}"));
        }
        let labels: Vec<_> =
            labels.iter().map(|(name, text)| format!("{name}=\"{}\"", escaped(text))).collect();
        self.line(format_args!("{name}{{{}}} {value}", labels.join(",")));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to a String does not fail.
        let written = writeln!(self.text, "{line}");
        debug_assert!(written.is_ok());
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_said_as_the_format_wants_them() {
        let mut document = Exposition::default();
        document.family(
            "a_total",
            "How\nmany.",
            Kind::Counter,
            [(vec![("why", "a \"b\\\n".to_owned())], 3_u64)],
        );
        document.family("b", "Now.", Kind::Gauge, [(vec![], 1.5)]);
        let took = Distribution { buckets: vec![(0.01, 2), (0.1, 0), (1.0, 1)], over: 4, sum: 9.25 };
        document.histograms("c_seconds", "How long.", [(vec![("by", "h2".to_owned())], took)]);
        let expected = "# HELP a_total How\\nmany.\n# TYPE a_total counter\na_total{why=\"a \\\"b\\\\\\n\"} 3\n\
            # HELP b Now.\n# TYPE b gauge\nb 1.5\n\
            # HELP c_seconds How long.\n# TYPE c_seconds histogram\n\
            c_seconds_bucket{by=\"h2\",le=\"0.01\"} 2\nc_seconds_bucket{by=\"h2\",le=\"0.1\"} 2\n\
            c_seconds_bucket{by=\"h2\",le=\"1\"} 3\nc_seconds_bucket{by=\"h2\",le=\"+Inf\"} 7\n\
            c_seconds_sum{by=\"h2\"} 9.25\nc_seconds_count{by=\"h2\"} 7\n";
        assert_eq!(document.finish(), expected);
    }
}
