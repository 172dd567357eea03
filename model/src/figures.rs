//! Figures of a process, as an operator and Prometheus read them. Written down they are that server's text format,
//! version 0.0.4 (<https://prometheus.io/docs/instrumenting/exposition_formats/>).
//!
//! Names, help and label names are the program's own words, and so are label values: nothing that a client can make up
//! becomes one, so that their number stays small.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use thiserror::Error;

/// What a document of this format is called.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Most families of one process; the richest has a dozen.
const MAX_FAMILIES: usize = 64;
/// Most samples of one family. Events by name are 60 or so.
const MAX_SAMPLES: usize = 512;
/// Most labels of a sample.
const MAX_LABELS: usize = 4;
/// Longest help, and longest value of a label, in bytes.
const MAX_TEXT_BYTES: usize = 256;

/// All figures of a process, family by family.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct Figures {
    families: Vec<Family>,
}

/// One thing that is measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Family {
    /// Its name.
    pub name: String,
    /// For people.
    pub help: String,
    /// What it is, and how much.
    pub samples: Samples,
}

/// What a family is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Samples {
    /// Only grows, until the process is started anew.
    Counter(Vec<Sample<u64>>),
    /// Goes up and down.
    Gauge(Vec<Sample<u64>>),
    /// How often something took how long, in seconds.
    Histogram(Vec<Sample<Distribution>>),
}

/// One figure of a family.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Sample<V> {
    /// What tells it from the others of its family.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// How much.
    pub value: V,
}

/// How often something took how long.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Distribution {
    /// For each bound in seconds, in rising order, how many took no longer than it and longer than the one before.
    pub buckets: Vec<(f64, u64)>,
    /// How many took longer than all bounds.
    pub over: u64,
    /// Seconds of all together.
    pub sum: f64,
}

/// Why figures of another process are not taken.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FiguresError {
    /// More than any process has.
    #[error("there are too many of {0}")]
    TooMany(&'static str),
    /// A family that is another process's, or has no name.
    #[error("a figure is called {0:?}, which does not begin with {1:?} or is no name")]
    Name(String, &'static str),
    /// A label that is no name, or a text that is too long.
    #[error("a label or a text of {0} cannot be")]
    Text(String),
}

impl Distribution {
    /// How many there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().fold(self.over, |all, (_, count)| all.saturating_add(*count))
    }
}

impl Figures {
    /// Adds a family of counters, with their labels.
    pub fn counters<'a, V: Into<u64>>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Vec<(&'a str, &'a str)>, V)>,
    ) {
        let samples = samples.into_iter().map(|(labels, value)| sample(&labels, value.into()));
        self.add(name, help, Samples::Counter(samples.collect()));
    }

    /// Adds a family of gauges, with their labels.
    pub fn gauges<'a, V: Into<u64>>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Vec<(&'a str, &'a str)>, V)>,
    ) {
        let samples = samples.into_iter().map(|(labels, value)| sample(&labels, value.into()));
        self.add(name, help, Samples::Gauge(samples.collect()));
    }

    /// Adds a gauge that stands alone.
    pub fn gauge(&mut self, name: &str, help: &str, value: u64) {
        self.gauges(name, help, [(vec![], value)]);
    }

    /// Adds a family of histograms, with their labels.
    pub fn histograms<'a>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Vec<(&'a str, &'a str)>, Distribution)>,
    ) {
        let samples = samples.into_iter().map(|(labels, value)| sample(&labels, value));
        self.add(name, help, Samples::Histogram(samples.collect()));
    }

    /// Adds those of another process behind these.
    pub fn extend(&mut self, others: Self) {
        self.families.extend(others.families);
    }

    /// Keeps the families that pass.
    pub fn retain(&mut self, passes: impl Fn(&Family) -> bool) {
        self.families.retain(passes);
    }

    /// All of them.
    #[must_use]
    pub fn families(&self) -> &[Family] {
        &self.families
    }

    /// Whether they can be those of a process whose names begin with `prefix`: what one process says must not pass for
    /// another's, nor fill the document.
    ///
    /// # Errors
    /// See [`FiguresError`].
    pub fn check(&self, prefix: &'static str) -> Result<(), FiguresError> {
        if self.families.len() > MAX_FAMILIES {
            return Err(FiguresError::TooMany("families"));
        }
        for family in &self.families {
            if !is_name(&family.name) || !family.name.starts_with(prefix) {
                return Err(FiguresError::Name(family.name.clone(), prefix));
            }
            let labels: Vec<_> = match &family.samples {
                Samples::Counter(samples) | Samples::Gauge(samples) => {
                    samples.iter().map(|sample| &sample.labels).collect()
                }
                Samples::Histogram(samples) => samples.iter().map(|sample| &sample.labels).collect(),
            };
            if labels.len() > MAX_SAMPLES || labels.iter().any(|labels| labels.len() > MAX_LABELS) {
                return Err(FiguresError::TooMany("samples"));
            }
            let fits = |(name, text): (&String, &String)| is_name(name) && text.len() <= MAX_TEXT_BYTES;
            if family.help.len() > MAX_TEXT_BYTES
                || !labels.iter().all(|labels| labels.iter().all(fits))
                || !has_few_buckets(&family.samples)
            {
                return Err(FiguresError::Text(family.name.clone()));
            }
        }
        Ok(())
    }

    /// As Prometheus reads it.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = Text(String::new());
        for family in &self.families {
            text.family(family);
        }
        text.0
    }
}

impl Figures {
    fn add(&mut self, name: &str, help: &str, samples: Samples) {
        self.families.push(Family { name: name.to_owned(), help: help.to_owned(), samples });
    }
}

fn sample<V>(labels: &[(&str, &str)], value: V) -> Sample<V> {
    let labels = labels.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
    Sample { labels: labels.collect(), value }
}

fn is_name(text: &str) -> bool {
    let begins = text.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase());
    let goes_on = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    begins && text.len() <= MAX_TEXT_BYTES && text.bytes().all(goes_on)
}

fn has_few_buckets(samples: &Samples) -> bool {
    match samples {
        Samples::Counter(_) | Samples::Gauge(_) => true,
        Samples::Histogram(samples) => {
            samples.iter().all(|sample| sample.value.buckets.len() <= MAX_FAMILIES)
        }
    }
}

struct Text(String);

impl Text {
    fn family(&mut self, Family { name, help, samples }: &Family) {
        let kind = match samples {
            Samples::Counter(_) => "counter",
            Samples::Gauge(_) => "gauge",
            Samples::Histogram(_) => "histogram",
        };
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
        match samples {
            Samples::Counter(samples) | Samples::Gauge(samples) => {
                for sample in samples {
                    self.sample(name, &sample.labels, None, sample.value);
                }
            }
            Samples::Histogram(samples) => {
                for sample in samples {
                    self.histogram(name, sample);
                }
            }
        }
    }

    fn histogram(&mut self, name: &str, Sample { labels, value }: &Sample<Distribution>) {
        let bucket = format!("{name}_bucket");
        let mut below: u64 = 0;
        for (bound, count) in &value.buckets {
            below = below.saturating_add(*count);
            self.sample(&bucket, labels, Some(&bound.to_string()), below);
        }
        self.sample(&bucket, labels, Some("+Inf"), value.count());
        self.sample(&format!("{name}_sum"), labels, None, value.sum);
        self.sample(&format!("{name}_count"), labels, None, value.count());
    }

    fn sample(
        &mut self,
        name: &str,
        labels: &BTreeMap<String, String>,
        bound: Option<&str>,
        value: impl Display,
    ) {
        let labels = labels.iter().map(|(name, text)| (name.as_str(), text.as_str()));
        let labels: Vec<_> = labels
            .chain(bound.map(|bound| ("le", bound)))
            .map(|(name, text)| format!("{name}=\"{}\"", escaped(text)))
            .collect();
        if labels.is_empty() {
            return self.line(format_args!("{name} {value}"));
        }
        self.line(format_args!("{name}{{{}}} {value}", labels.join(",")));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to a String does not fail.
        let written = writeln!(self.0, "{line}");
        debug_assert!(written.is_ok());
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures() -> Figures {
        let mut figures = Figures::default();
        figures.counters("a_total", "How\nmany.", [(vec![("why", "a \"b\\\n")], 3_u64)]);
        figures.gauge("b", "Now.", 7);
        let took = Distribution { buckets: vec![(0.01, 2), (0.1, 0), (1.0, 1)], over: 4, sum: 9.25 };
        figures.histograms("c_seconds", "How long.", [(vec![("by", "h2")], took)]);
        figures
    }

    #[test]
    fn families_are_said_as_the_format_wants_them() {
        let expected = "# HELP a_total How\\nmany.\n# TYPE a_total counter\na_total{why=\"a \\\"b\\\\\\n\"} 3\n\
            # HELP b Now.\n# TYPE b gauge\nb 7\n\
            # HELP c_seconds How long.\n# TYPE c_seconds histogram\n\
            c_seconds_bucket{by=\"h2\",le=\"0.01\"} 2\nc_seconds_bucket{by=\"h2\",le=\"0.1\"} 2\n\
            c_seconds_bucket{by=\"h2\",le=\"1\"} 3\nc_seconds_bucket{by=\"h2\",le=\"+Inf\"} 7\n\
            c_seconds_sum{by=\"h2\"} 9.25\nc_seconds_count{by=\"h2\"} 7\n";
        assert_eq!(figures().text(), expected);
    }

    #[test]
    fn figures_cross_a_socket_as_they_are() {
        let text = serde_json::to_string(&figures()).expect("JSON");
        assert_eq!(serde_json::from_str::<Figures>(&text).expect("figures"), figures());
    }

    #[test]
    fn what_another_process_makes_up_is_refused() {
        let mut good = Figures::default();
        good.counters("x_a_total", "A.", [(vec![("why", "any text\n\"")], 1_u64)]);
        assert_eq!(good.check("x_"), Ok(()));
        let with = |name: &str, help: &str, labels: &[(&str, &str)]| {
            let mut figures = good.clone();
            figures.gauges(name, help, [(labels.to_vec(), 1_u64)]);
            figures.check("x_")
        };
        let long = "l".repeat(MAX_TEXT_BYTES + 1);
        assert!(matches!(with("y_a", "", &[]), Err(FiguresError::Name(..))), "another's");
        assert!(matches!(with("x_a 1\nx_b", "", &[]), Err(FiguresError::Name(..))), "a line of its own");
        assert!(matches!(with("x_a", &long, &[]), Err(FiguresError::Text(_))));
        assert!(matches!(with("x_a", "", &[("why", &long)]), Err(FiguresError::Text(_))));
        assert!(matches!(with("x_a", "", &[("w}", "")]), Err(FiguresError::Text(_))));
        let labels = ["a", "b", "c", "d", "e"].map(|name| (name, ""));
        assert!(matches!(with("x_a", "", &labels), Err(FiguresError::TooMany(_))));
        let mut many = Figures::default();
        (0..=MAX_FAMILIES).for_each(|_| many.gauge("x_a", "", 1));
        assert!(matches!(many.check("x_"), Err(FiguresError::TooMany(_))));
    }
}
