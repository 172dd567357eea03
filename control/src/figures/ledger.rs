//! What control itself does, counted.

use axum::http::Method;
use feed::figures::Histogram;
use model::figures::{Distribution, Figures};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Statuses, by their first digit.
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
/// The route of requests for which there is none: their paths are clients' inventions.
const NO_ROUTE: &str = "none";
/// The method of requests whose method is none of those that routes have.
const OTHER_METHOD: &str = "other";
/// Methods of routes, and of browsers that ask about them.
const METHODS: [&str; 7] = ["DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"];

/// What is done to VMs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A VM is made, until it is ready.
    Create,
    /// A VM that was down is booted.
    Start,
    /// A VM that slept goes on, for whomever.
    Wake,
    /// A VM goes to sleep.
    Suspend,
    /// A VM is shut down or ended.
    Stop,
    /// All of a VM is removed.
    Delete,
    /// A copy is kept.
    Snapshot,
    /// Running copies are made.
    Fork,
}

impl Operation {
    /// All of them, in their order.
    const ALL: [(Self, &'static str); 8] = [
        (Self::Create, "create"),
        (Self::Start, "start"),
        (Self::Wake, "wake"),
        (Self::Suspend, "suspend"),
        (Self::Stop, "stop"),
        (Self::Delete, "delete"),
        (Self::Snapshot, "snapshot"),
        (Self::Fork, "fork"),
    ];
}

/// Requests to one route with one method.
#[derive(Debug, Default)]
struct Requests {
    answers: [AtomicU64; CLASSES.len()],
    took: Histogram,
}

#[derive(Debug, Default)]
struct Done {
    failed: AtomicU64,
    took: Histogram,
}

/// All counts of control. Any thread may count.
#[derive(Debug, Default)]
pub struct Ledger {
    /// By method and route: no more than the table of routes has, times [`METHODS`].
    requests: Mutex<BTreeMap<(&'static str, String), Arc<Requests>>>,
    operations: [Done; Operation::ALL.len()],
    certified: AtomicU64,
    not_certified: AtomicU64,
}

impl Ledger {
    /// Counts a request by the pattern of its route.
    pub fn request(&self, method: &Method, route: Option<&str>, status: u16, took: Duration) {
        let known = METHODS.into_iter().find(|known| *known == method.as_str());
        let key = (known.unwrap_or(OTHER_METHOD), route.unwrap_or(NO_ROUTE).to_owned());
        let requests = {
            // Nothing that panics runs under the lock.
            let mut all = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(all.entry(key).or_default())
        };
        let class = usize::from(status / 100).clamp(1, CLASSES.len()) - 1;
        requests.answers[class].fetch_add(1, Ordering::Relaxed);
        requests.took.note(took);
    }

    /// Counts what was done to a VM, or could not be.
    pub fn operation(&self, operation: Operation, succeeded: bool, took: Duration) {
        let done = &self.operations[operation as usize];
        if succeeded {
            done.took.note(took);
        } else {
            done.failed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts an order for a certificate that has come to its end.
    pub fn order(&self, succeeded: bool) {
        let count = if succeeded { &self.certified } else { &self.not_certified };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// Adds all counts.
    pub fn tell(&self, figures: &mut Figures) {
        self.tell_requests(figures);
        let took: Vec<(&str, Distribution, u64)> = Operation::ALL
            .iter()
            .zip(&self.operations)
            .map(|((_, name), done)| (*name, done.took.so_far(), done.failed.load(Ordering::Relaxed)))
            .collect();
        let outcomes = took.iter().flat_map(|(name, took, failed)| {
            [("ok", took.count()), ("failed", *failed)]
                .map(|(outcome, count)| (vec![("operation", *name), ("outcome", outcome)], count))
        });
        figures.counters(
            "gatehouse_control_vm_operations_total",
            "What was done to VMs, whoever asked; failed: or refused.",
            outcomes,
        );
        figures.histograms(
            "gatehouse_control_vm_operation_seconds",
            "How long what was done to VMs took.",
            took.iter().map(|(name, took, _)| (vec![("operation", *name)], took.clone())),
        );
        let orders = [("ok", &self.certified), ("failed", &self.not_certified)];
        figures.counters(
            "gatehouse_control_certificate_orders_total",
            "Orders for certificates that came to their end.",
            orders.map(|(outcome, count)| (vec![("outcome", outcome)], count.load(Ordering::Relaxed))),
        );
    }

    fn tell_requests(&self, figures: &mut Figures) {
        let all = self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let answers = all.iter().flat_map(|((method, route), requests)| {
            CLASSES.into_iter().zip(&requests.answers).filter_map(move |(class, count)| {
                let (mut labels, count) = (labels(method, route), count.load(Ordering::Relaxed));
                labels.push(("class", class));
                (count > 0).then_some((labels, count))
            })
        });
        figures.counters(
            "gatehouse_control_requests_total",
            "Requests to the API, by the pattern of their route and the class of their status.",
            answers,
        );
        figures.histograms(
            "gatehouse_control_request_seconds",
            "From a request's head to its answer's.",
            all.iter().map(|((method, route), requests)| (labels(method, route), requests.took.so_far())),
        );
    }
}

fn labels<'a>(method: &'a str, route: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![("method", method), ("route", route)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_cannot_make_up_labels() {
        let ledger = Ledger::default();
        let odd = Method::from_bytes(b"BREW").expect("a method");
        let second = Duration::from_secs(1);
        ledger.request(&odd, None, 404, second);
        ledger.request(&odd, Some("/v1/vms/{vm_id}"), 405, second);
        ledger.request(&Method::GET, Some("/v1/vms/{vm_id}"), 200, second);
        ledger.request(&Method::GET, Some("/v1/vms/{vm_id}"), 999, second);
        let mut figures = Figures::default();
        ledger.tell(&mut figures);
        let text = figures.text();
        let lines: Vec<_> =
            text.lines().filter(|line| line.starts_with("gatehouse_control_requests_total")).collect();
        assert_eq!(
            lines,
            [
                r#"gatehouse_control_requests_total{class="2xx",method="GET",route="/v1/vms/{vm_id}"} 1"#,
                r#"gatehouse_control_requests_total{class="5xx",method="GET",route="/v1/vms/{vm_id}"} 1"#,
                r#"gatehouse_control_requests_total{class="4xx",method="other",route="/v1/vms/{vm_id}"} 1"#,
                r#"gatehouse_control_requests_total{class="4xx",method="other",route="none"} 1"#,
            ]
        );
        assert_eq!(figures.check("gatehouse_control_"), Ok(()));
    }

    #[test]
    fn operations_have_their_own_places() {
        for (place, (operation, _)) in Operation::ALL.iter().enumerate() {
            assert_eq!(*operation as usize, place);
        }
        let ledger = Ledger::default();
        ledger.operation(Operation::Wake, true, Duration::from_millis(30));
        ledger.operation(Operation::Wake, false, Duration::from_secs(60));
        let mut figures = Figures::default();
        ledger.tell(&mut figures);
        let text = figures.text();
        for line in [
            r#"gatehouse_control_vm_operations_total{operation="wake",outcome="ok"} 1"#,
            r#"gatehouse_control_vm_operations_total{operation="wake",outcome="failed"} 1"#,
            r#"gatehouse_control_vm_operation_seconds_sum{operation="wake"} 0.03"#,
            r#"gatehouse_control_vm_operations_total{operation="start",outcome="ok"} 0"#,
        ] {
            assert!(text.lines().any(|other| other == line), "{line}\n{text}");
        }
    }
}
