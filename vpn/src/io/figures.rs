//! What vpn tells of itself to who gathers figures (docs/observability.md).

use super::desk::Question;
use crate::client::{SessionState, SessionStatus};
use crate::pure::count::Count;
use model::figures::Figures;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, oneshot};

/// Tells root and `own_user`, for ever.
pub async fn serve(path: PathBuf, own_user: u32, questions: mpsc::Sender<Question>) {
    let started = SystemTime::now();
    feed::figures::serve(&path, own_user, || gather(questions.clone(), started)).await;
}

/// What the loop does not answer is not among the figures: no value is better than a wrong one.
async fn gather(questions: mpsc::Sender<Question>, started: SystemTime) -> Figures {
    let mut figures = Figures::default();
    let began = started.duration_since(UNIX_EPOCH).unwrap_or_default();
    figures.gauges(
        "gatehouse_vpn_info",
        "What runs.",
        [(vec![("version", env!("CARGO_PKG_VERSION"))], 1_u64)],
    );
    figures.gauge(
        "gatehouse_vpn_start_time_seconds",
        "When it was started, since the Unix epoch.",
        began.as_secs(),
    );
    if let Some(counters) = asked(&questions, Question::Counters).await {
        figures.counters(
            "gatehouse_vpn_events_total",
            "Datagrams, packets, bytes and sessions, and why some were dropped, by name.",
            events(&counters),
        );
    }
    if let Some(sessions) = asked(&questions, |to| Question::Sessions(None, to)).await {
        figures.gauges("gatehouse_vpn_sessions", "Sessions, by what their clients do.", states(&sessions));
    }
    figures
}

async fn asked<T>(
    questions: &mpsc::Sender<Question>,
    question: impl FnOnce(oneshot::Sender<T>) -> Question,
) -> Option<T> {
    let (to, answer) = oneshot::channel();
    questions.send(question(to)).await.ok()?;
    answer.await.ok()
}

/// All of them, also those that are zero: a counter that appears with its first event hides that event.
fn events(counters: &BTreeMap<&'static str, u64>) -> Vec<(Vec<(&'static str, &'static str)>, u64)> {
    let value = |name: &str| counters.get(name).copied().unwrap_or(0);
    Count::ALL.iter().map(|(_, name)| (vec![("event", *name)], value(name))).collect()
}

fn states(sessions: &[SessionStatus]) -> [(Vec<(&'static str, &'static str)>, u64); 3] {
    let named = [
        (SessionState::Registered, "registered"),
        (SessionState::Live, "live"),
        (SessionState::Idled, "idled"),
    ];
    named.map(|(state, name)| {
        let count = sessions.iter().filter(|session| session.state == state).count();
        (vec![("state", name)], count as u64)
    })
}
