//! `gatehouse metrics`.

use super::{Api, ClientError, print_json, print_line};
use crate::table::Table;
use model::api::admin::HouseFigures;
use model::figures::{Distribution, Figures, Sample, Samples};
use std::collections::BTreeMap;

/// How figures are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// For people.
    Table,
    /// For programs.
    Json,
    /// For a Prometheus server.
    Prometheus,
}

impl Form {
    /// By the options, of which one at most is given.
    #[must_use]
    pub fn of(json: bool, prometheus: bool) -> Self {
        match (json, prometheus) {
            (true, _) => Self::Json,
            (false, true) => Self::Prometheus,
            (false, false) => Self::Table,
        }
    }
}

/// Shows what all processes have counted: figures whose names begin with `prefix`.
///
/// # Errors
/// See [`ClientError`].
pub async fn metrics(api: &Api, prefix: &str, form: Form) -> Result<(), ClientError> {
    let mut told: HouseFigures = api.get(&["admin", "v1", "metrics"], &[]).await?;
    told.families.retain(|family| family.name.starts_with(prefix));
    match form {
        Form::Json => print_json(&told),
        Form::Prometheus => print_line(told.families.text().trim_end()),
        Form::Table => print_line(&table(&told.families).to_string()),
    }
}

fn table(figures: &Figures) -> Table {
    let mut table = Table::new(&["FIGURE", "OF", "VALUE"]);
    for family in figures.families() {
        let mut row = |labels: &BTreeMap<String, String>, value: String| {
            let labels: Vec<_> = labels.iter().map(|(name, text)| format!("{name}={text}")).collect();
            table.row([family.name.clone(), labels.join(" "), value]);
        };
        match &family.samples {
            Samples::Counter(samples) | Samples::Gauge(samples) => {
                for Sample { labels, value } in samples {
                    row(labels, value.to_string());
                }
            }
            Samples::Histogram(samples) => {
                for Sample { labels, value } in samples {
                    row(labels, summed_up(value));
                }
            }
        }
    }
    table
}

#[expect(clippy::cast_precision_loss, reason = "the mean is for the eye")]
fn summed_up(took: &Distribution) -> String {
    match took.count() {
        0 => "0".to_owned(),
        count => format!("{count}, {:.3} s on average", took.sum / count as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_summed_up_and_the_rest_is_shown_as_it_is() {
        let mut figures = Figures::default();
        figures.counters("a_total", "A.", [(vec![("why", "because"), ("by", "h1")], 3_u64)]);
        figures.gauge("b", "B.", 0);
        let took = Distribution { buckets: vec![(0.1, 3)], over: 1, sum: 2.0 };
        let none = Distribution { buckets: vec![(0.1, 0)], over: 0, sum: 0.0 };
        figures.histograms("c_seconds", "C.", [(vec![("of", "x")], took), (vec![("of", "y")], none)]);
        let shown = table(&figures).to_string();
        let expected = [
            "FIGURE     OF                VALUE",
            "a_total    by=h1 why=because  3",
            "b                            0",
            "c_seconds  of=x              4, 0.500 s on average",
            "c_seconds  of=y              0",
        ];
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(shown.lines().map(words).collect::<Vec<_>>(), expected.map(words));
    }
}
