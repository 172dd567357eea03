//! `gatehouse doctor`: what the host has, what it lacks, what that means, and how to mend it.

pub mod host;
pub mod kvm;

use crate::settings::Settings;
use crate::table::Table;
use serde::Serialize;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// All is well.
    Good,
    /// Gatehouse works, but not as well as it could.
    Warning,
    /// Gatehouse cannot work.
    Bad,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub check: &'static str,
    /// How it is.
    pub verdict: Verdict,
    /// What was found, and what it means.
    pub found: String,
    /// How to mend it; only where it is not good.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Finding {
    /// All is well.
    #[must_use]
    pub fn good(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Good, found: found.into(), remedy: None }
    }

    /// It could be better.
    #[must_use]
    pub fn warning(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Warning, found: found.into(), remedy: Some(remedy.into()) }
    }

    /// It cannot work like this.
    #[must_use]
    pub fn bad(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Bad, found: found.into(), remedy: Some(remedy.into()) }
    }
}

/// All findings, and whether a stock guest runs on this host itself.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Nothing is bad.
    pub ok: bool,
    /// What kind of KVM the host has.
    pub kvm: kvm::Kind,
    /// A stock Linux kernel can run in a VM of this host.
    pub runs_stock_guests: bool,
    /// One line each.
    pub findings: Vec<Finding>,
}

/// Looks at everything.
#[must_use]
pub fn examine(settings: &Settings) -> Report {
    let (kind, kvm) = kvm::check();
    let mut findings = vec![host::root()];
    findings.push(kvm);
    findings.extend([host::tun(), host::nftables(), host::namespaces(), host::cgroups(), host::programs()]);
    findings.extend(host::ports(settings));
    findings.extend([
        host::image(settings),
        host::disk(settings),
        host::memory(settings),
        host::open_files(settings),
        host::clock(),
        host::systemd(),
    ]);
    Report {
        ok: findings.iter().all(|finding| finding.verdict != Verdict::Bad),
        kvm: kind,
        runs_stock_guests: kind.runs_stock_guests(),
        findings,
    }
}

/// What must be there before `up` starts anything.
#[must_use]
pub fn essentials(settings: &Settings) -> Vec<Finding> {
    vec![
        host::root(),
        kvm::check().1,
        host::tun(),
        host::nftables(),
        host::namespaces(),
        host::programs(),
        host::image(settings),
    ]
}

/// The report as people read it.
#[must_use]
pub fn render(report: &Report) -> String {
    let mut table = Table::new(&["", "CHECK", "FOUND"]);
    for finding in &report.findings {
        let mark = match finding.verdict {
            Verdict::Good => "ok",
            Verdict::Warning => "warn",
            Verdict::Bad => "BAD",
        };
        let remedy = finding.remedy.as_ref().map(|remedy| format!("\n-> {remedy}")).unwrap_or_default();
        table.row([mark.to_owned(), finding.check.to_owned(), format!("{}{remedy}", finding.found)]);
    }
    let bad = report.findings.iter().filter(|finding| finding.verdict == Verdict::Bad).count();
    let warnings = report.findings.iter().filter(|finding| finding.verdict == Verdict::Warning).count();
    let end = if report.ok {
        format!("Gatehouse can run here ({warnings} warnings). Next: gatehouse up")
    } else {
        format!("Gatehouse cannot run here yet: {bad} to mend, {warnings} warnings.")
    };
    format!("{table}\n\n{end}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Host, Wishes};

    #[test]
    fn every_finding_that_is_not_good_says_how_to_mend_it() {
        let folder = tempfile::tempdir().expect("folder");
        let wishes = Wishes { data_dir: Some(folder.path().to_owned()), ..Wishes::default() };
        let settings = wishes.settle(Host::here()).expect("settings");
        let report = examine(&settings);
        assert!(report.findings.len() >= 14);
        for finding in &report.findings {
            assert_eq!(finding.verdict != Verdict::Good, finding.remedy.is_some(), "{finding:?}");
        }
        let image = report.findings.iter().find(|finding| finding.check == "image").expect("looked at");
        assert_eq!(image.verdict, Verdict::Bad);
        assert!(!report.ok);
        let text = render(&report);
        assert!(text.contains("cargo xtask image"), "{text}");
    }
}
