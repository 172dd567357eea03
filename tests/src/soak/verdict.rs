//! What a journal is worth: pure, so that its own tests can show it what a good house never does.

use super::journal::{Entry, Kill, Mapping, Request};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Longest until a door answers again after its daemon was killed, in milliseconds: under emulation, with one CPU for all.
pub const BACK_WAIT: u64 = 120_000;

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// Answered, by kind.
    pub answered: BTreeMap<String, u64>,
    /// Failed and excused, by kind and reason.
    pub excused: BTreeMap<String, u64>,
    /// Slept because they were asked to, and by themselves.
    pub slept: [u64; 2],
    /// Sleeps that traffic forbade.
    pub disturbed: u64,
    /// Milliseconds from the question to the first answer of VMs that slept.
    pub woken: Vec<u64>,
    /// Names given, and taken away.
    pub mapped: [u64; 2],
    /// Certificates that were shown after another one for the same name.
    pub renewed: BTreeMap<String, u64>,
    /// Calls of the API that were made again, by what they said.
    pub again: BTreeMap<String, u64>,
    /// Writes that were acknowledged.
    pub acknowledged: u64,
    /// Longest answer, in milliseconds, and what it was to.
    pub slowest: (u64, String),
    /// Failures since a VM did not take a connection within the time that the house gives it: each a sentence. Whether that
    /// is a fault is for who knows how fast VMs are here.
    pub silent: Vec<String>,
    /// What must not be: each a sentence.
    pub faults: Vec<String>,
}

/// What the doors say of a VM that does not answer in time.
const SILENT: [&str; 2] = ["status 504", "did not answer within"];

/// Judges a journal, given who was killed when.
#[must_use]
pub fn judge(journal: &[Entry], kills: &[Kill]) -> Verdict {
    let mut verdict = Verdict::default();
    let places = Places::of(journal);
    let windows = Windows::of(journal, kills, &mut verdict.faults);
    let mut shown: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for entry in journal {
        match entry {
            Entry::Request(request) => verdict.request(request, &places, &windows),
            Entry::Ssh(ssh) => match (&ssh.said, &ssh.error) {
                (Some(said), None) if *said == ssh.vm => verdict.count("ssh", ssh.from, ssh.to),
                (Some(said), None) => verdict.fault(format!("SSH to {} ran in {said:?}", ssh.vm)),
                (_, error) => {
                    let excuse = windows.ssh.excuse(ssh.from, ssh.to);
                    verdict.failure("ssh", &ssh.vm, (ssh.from, ssh.to), error.as_deref(), excuse);
                }
            },
            Entry::Mapping(mapping) => verdict.mapped[usize::from(mapping.vm.is_none())] += 1,
            Entry::Slept { idle } => verdict.slept[usize::from(*idle)] += 1,
            Entry::Disturbed => verdict.disturbed += 1,
            Entry::Woken { ms } => verdict.woken.push(*ms),
            Entry::Certificate { host, serial } => {
                shown.entry(host).or_default().insert(serial);
            }
            Entry::Again { error } => *verdict.again.entry(error.clone()).or_default() += 1,
            Entry::Ledger { .. } | Entry::Copy { .. } => {}
        }
    }
    verdict.renewed =
        shown.into_iter().map(|(host, serials)| (host.to_owned(), serials.len() as u64 - 1)).collect();
    verdict.ledgers(journal);
    verdict
}

impl Verdict {
    /// How many were answered.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.answered.values().sum()
    }

    fn request(&mut self, request: &Request, places: &Places<'_>, windows: &Windows) {
        let Request { kind, host, from, to, vm, seen, .. } = request;
        if let Some(vm) = vm
            && !places.may(host, vm, *from, *to)
        {
            let told = places.tell(host);
            self.fault(format!("{kind} to {host} at {from} to {to} was answered by {vm}; it led to {told}"));
        }
        if let Some(seen) = seen
            && seen != host
        {
            self.fault(format!("{kind} to {host} was seen as {seen} by {vm:?}"));
        }
        match &request.error {
            None => self.count(kind, *from, *to),
            Some(error) => {
                let excuse = windows.http.excuse(*from, *to) || places.nowhere(host, *from, *to);
                self.failure(kind, host, (*from, *to), Some(error), excuse);
            }
        }
    }

    fn count(&mut self, kind: &str, from: u64, to: u64) {
        *self.answered.entry(kind.to_owned()).or_default() += 1;
        let took = to.saturating_sub(from);
        // A download takes its time on purpose.
        if took > self.slowest.0 && kind != "long" {
            self.slowest = (took, format!("{kind} at {from}"));
        }
    }

    fn failure(
        &mut self,
        kind: &str,
        whom: &str,
        (from, to): (u64, u64),
        error: Option<&str>,
        excused: bool,
    ) {
        let error = error.unwrap_or("no answer");
        if excused {
            *self.excused.entry(format!("{kind}: {error}")).or_default() += 1;
            return;
        }
        let told = format!("{kind} to {whom} at {from} failed after {} ms: {error}", to.saturating_sub(from));
        if SILENT.iter().any(|silent| error.contains(silent)) {
            self.silent.push(told)
        } else {
            self.fault(told)
        }
    }

    /// Every acknowledged line is there once.
    fn ledgers(&mut self, journal: &[Entry]) {
        let mut kept: BTreeMap<&str, &[String]> = BTreeMap::new();
        for entry in journal {
            if let Entry::Ledger { vm, ids } = entry {
                kept.insert(vm, ids);
            } else if let Entry::Copy { of, least, ids } = entry {
                self.contains(&format!("a copy of {of}"), ids, least.iter());
            }
        }
        let mut acknowledged: BTreeMap<&str, Vec<&String>> = BTreeMap::new();
        for entry in journal {
            if let Entry::Request(Request { vm: Some(vm), wrote: Some(id), .. }) = entry {
                acknowledged.entry(vm).or_default().push(id);
                self.acknowledged += 1;
            }
        }
        for (vm, ids) in acknowledged {
            match kept.get(vm) {
                Some(kept) => self.contains(vm, kept, ids.into_iter()),
                None => self.fault(format!("{vm} has no ledger, and acknowledged {} writes", ids.len())),
            }
        }
    }

    fn contains<'a>(&mut self, whose: &str, kept: &[String], wanted: impl Iterator<Item = &'a String>) {
        let set: BTreeSet<&String> = kept.iter().collect();
        if set.len() != kept.len() {
            self.fault(format!("the ledger of {whose} has {} lines twice", kept.len() - set.len()));
        }
        let lost: Vec<&String> = wanted.filter(|id| !set.contains(id)).collect();
        if let Some(first) = lost.first() {
            self.fault(format!("{whose} lost {} acknowledged writes, the first is {first}", lost.len()));
        }
    }

    fn fault(&mut self, what: String) {
        self.faults.push(what);
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.total();
        writeln!(
            out,
            "{total} answers: {:?}; the slowest took {} ms ({})",
            self.answered, self.slowest.0, self.slowest.1
        )?;
        writeln!(out, "{} excused failures: {:#?}", self.excused.values().sum::<u64>(), self.excused)?;
        writeln!(out, "{} failures since a VM took no connection: {:#?}", self.silent.len(), self.silent)?;
        writeln!(out, "{} writes acknowledged", self.acknowledged)?;
        let mut woken = self.woken.clone();
        woken.sort_unstable();
        let (median, worst) = (woken.get(woken.len() / 2), woken.last());
        writeln!(
            out,
            "{} sleeps when asked, {} when idle, {} disturbed; {} wakes, of {median:?} ms, at most {worst:?}",
            self.slept[0],
            self.slept[1],
            self.disturbed,
            woken.len()
        )?;
        writeln!(
            out,
            "{} mappings, {} removals; renewals: {:?}",
            self.mapped[0], self.mapped[1], self.renewed
        )?;
        write!(out, "calls of the API made again: {:?}", self.again)
    }
}

/// Where each name led when.
struct Places<'a>(BTreeMap<&'a str, Vec<&'a Mapping>>);

impl<'a> Places<'a> {
    fn of(journal: &'a [Entry]) -> Self {
        let mut places: BTreeMap<&str, Vec<&Mapping>> = BTreeMap::new();
        for entry in journal {
            if let Entry::Mapping(mapping) = entry {
                places.entry(&mapping.host).or_default().push(mapping);
            }
        }
        for mappings in places.values_mut() {
            mappings.sort_by_key(|mapping| mapping.from);
        }
        Self(places)
    }

    /// Whether the name led to that place at some moment of the span: each mapping holds from when it was asked for
    /// until the next one was seen.
    fn led(&self, host: &str, vm: Option<&str>, from: u64, to: u64) -> bool {
        let mappings = self.0.get(host).map(Vec::as_slice).unwrap_or_default();
        mappings.iter().enumerate().any(|(place, mapping)| {
            let end = mappings.get(place + 1).map_or(u64::MAX, |next| next.to);
            mapping.vm.as_deref() == vm && mapping.from <= to && from <= end
        })
    }

    fn may(&self, host: &str, vm: &str, from: u64, to: u64) -> bool {
        self.led(host, Some(vm), from, to)
    }

    fn nowhere(&self, host: &str, from: u64, to: u64) -> bool {
        self.led(host, None, from, to)
    }

    fn tell(&self, host: &str) -> String {
        let mappings = self.0.get(host).map(Vec::as_slice).unwrap_or_default();
        let told = mappings
            .iter()
            .map(|mapping| format!("{:?} from {} to {}", mapping.vm, mapping.from, mapping.to));
        told.collect::<Vec<_>>().join(", ")
    }
}

/// Spans in which a door's failures are excused: from the death of its daemon to the first answer to a question that was
/// asked after it.
struct Windows {
    http: Spans,
    ssh: Spans,
}

struct Spans(Vec<(u64, u64)>);

impl Windows {
    fn of(journal: &[Entry], kills: &[Kill], faults: &mut Vec<String>) -> Self {
        let http = journal.iter().filter_map(|entry| {
            let Entry::Request(one) = entry else { return None };
            (one.error.is_none() && one.kind != "echo").then_some((one.from, one.to))
        });
        let ssh = journal.iter().filter_map(|entry| {
            let Entry::Ssh(one) = entry else { return None };
            one.error.is_none().then_some((one.from, one.to))
        });
        Self {
            http: Spans::of("edge-proxy", kills, &http.collect::<Vec<_>>(), faults),
            ssh: Spans::of("ssh-proxy", kills, &ssh.collect::<Vec<_>>(), faults),
        }
    }
}

impl Spans {
    fn of(daemon: &str, kills: &[Kill], answers: &[(u64, u64)], faults: &mut Vec<String>) -> Self {
        let mut spans = Vec::new();
        for kill in kills.iter().filter(|kill| kill.daemon == daemon) {
            let first = answers.iter().filter(|(from, _)| *from >= kill.at).map(|(_, to)| *to).min();
            let limit = kill.at + BACK_WAIT;
            match first {
                Some(first) if first <= limit => spans.push((kill.at, first.max(kill.back))),
                Some(_) | None => {
                    faults
                        .push(format!("{daemon}, killed at {}, answered nobody for {BACK_WAIT} ms", kill.at));
                    spans.push((kill.at, limit));
                }
            }
        }
        Self(spans)
    }

    fn excuse(&self, from: u64, to: u64) -> bool {
        self.0.iter().any(|(begin, end)| *begin <= to && from <= *end)
    }
}

#[cfg(test)]
mod tests {
    use super::super::journal::Ssh;
    use super::*;

    fn asked(host: &str, from: u64, to: u64, vm: Option<&str>) -> Request {
        Request {
            kind: "h1".to_owned(),
            host: host.to_owned(),
            from,
            to,
            vm: vm.map(str::to_owned),
            seen: None,
            wrote: None,
            error: vm.is_none().then(|| "refused".to_owned()),
        }
    }

    fn leads(host: &str, vm: Option<&str>, from: u64, to: u64) -> Entry {
        Entry::Mapping(Mapping { host: host.to_owned(), vm: vm.map(str::to_owned), from, to })
    }

    /// `a` leads to one until 100 to 110, then to two until 200 to 210, then nowhere.
    fn told(request: Request) -> Vec<Entry> {
        vec![
            leads("a", Some("one"), 0, 10),
            leads("a", Some("two"), 100, 110),
            leads("a", None, 200, 210),
            Entry::Request(request),
        ]
    }

    #[test]
    fn an_answer_of_a_vm_that_the_name_does_not_lead_to_is_a_fault() {
        let cases = [
            (50, 60, "one", true),
            (50, 60, "two", false),
            (95, 102, "two", true),
            (105, 108, "one", true),
            (111, 120, "one", false),
            (90, 300, "one", true),
            (205, 207, "two", true),
            (211, 300, "two", false),
            (0, 300, "three", false),
        ];
        for (from, to, vm, good) in cases {
            let verdict = judge(&told(asked("a", from, to, Some(vm))), &[]);
            assert_eq!(verdict.faults.is_empty(), good, "{from} {to} {vm}: {:?}", verdict.faults);
        }
        let strayed = Request { seen: Some("b".to_owned()), ..asked("a", 50, 60, Some("one")) };
        assert_eq!(judge(&told(strayed), &[]).faults.len(), 1, "the VM saw another name");
    }

    #[test]
    fn a_failure_is_excused_by_its_doors_death_alone() {
        let good = Entry::Request(asked("a", 70, 80, Some("one")));
        let kill = |daemon| Kill { daemon, at: 50, back: 60 };
        let cases =
            [("edge-proxy", 40, 55, true), ("edge-proxy", 75, 90, true), ("edge-proxy", 81, 90, false)];
        let others = ["control", "vpc", "vmm", "vpn", "ssh-proxy"].map(|daemon| (daemon, 40, 55, false));
        for (daemon, from, to, excused) in cases.into_iter().chain(others) {
            let mut journal = told(asked("a", from, to, None));
            let ssh = Ssh { vm: "one".into(), from: 61, to: 62, said: Some("one".into()), error: None };
            journal.extend([good.clone(), Entry::Ssh(ssh)]);
            let verdict = judge(&journal, &[kill(daemon)]);
            assert_eq!(verdict.faults.is_empty(), excused, "{daemon} {from}: {:?}", verdict.faults);
            assert_eq!(verdict.excused.len(), usize::from(excused));
        }
        let nowhere = judge(&told(asked("a", 250, 260, None)), &[]);
        assert!(nowhere.faults.is_empty(), "it leads nowhere: {:?}", nowhere.faults);
    }

    #[test]
    fn that_a_vm_takes_no_connection_is_told_apart() {
        let error = Some("Error status 504 {\"code\":\"VM_NOT_REACHABLE\"}".to_owned());
        let verdict = judge(&told(Request { error, ..asked("a", 20, 30, None) }), &[]);
        assert_eq!((verdict.silent.len(), verdict.faults.len()), (1, 0));
    }

    #[test]
    fn a_door_that_does_not_come_back_is_a_fault() {
        let late = Entry::Request(asked("a", BACK_WAIT, BACK_WAIT + 60, Some("one")));
        let kills = [Kill { daemon: "edge-proxy", at: 50, back: 60 }];
        let faults = judge(&[leads("a", Some("one"), 0, 10), late], &kills).faults;
        assert!(faults.len() == 1 && faults[0].contains("answered nobody"), "{faults:?}");
    }

    #[test]
    fn ssh_into_another_vm_is_a_fault_and_so_is_none_at_all() {
        let ssh = |said: Option<&str>| {
            let error = said.is_none().then(|| "closed".to_owned());
            Entry::Ssh(Ssh { vm: "one".into(), from: 1, to: 2, said: said.map(str::to_owned), error })
        };
        assert!(judge(&[ssh(Some("one"))], &[]).faults.is_empty());
        assert_eq!(judge(&[ssh(Some("two"))], &[]).faults.len(), 1);
        assert_eq!(judge(&[ssh(None)], &[]).faults.len(), 1);
    }

    #[test]
    fn a_write_that_was_acknowledged_stands_in_its_ledger_once() {
        let write = |id: &str| {
            Entry::Request(Request { wrote: Some(id.to_owned()), ..asked("a", 20, 30, Some("one")) })
        };
        let ids = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>();
        let cases: [(&[&str], usize); 5] =
            [(&["1", "2"], 0), (&["0", "2", "1"], 0), (&["1"], 1), (&["1", "2", "2"], 1), (&[], 1)];
        for (kept, faults) in cases {
            let ledger = Entry::Ledger { vm: "one".to_owned(), ids: ids(kept) };
            let verdict = judge(&[leads("a", Some("one"), 0, 10), write("1"), write("2"), ledger], &[]);
            assert_eq!(verdict.faults.len(), faults, "{kept:?}: {:?}", verdict.faults);
            assert_eq!(verdict.acknowledged, 2);
        }
        let none = judge(&[leads("a", Some("one"), 0, 10), write("1")], &[]);
        assert_eq!(none.faults.len(), 1, "no ledger at all");
        let copy = Entry::Copy { of: "one".to_owned(), least: ids(&["1", "2"]), ids: ids(&["1"]) };
        assert_eq!(judge(&[copy], &[]).faults.len(), 1);
    }
}
