//! A proof: which names may hold the code, in which order they are asked, and what is said when none has it.

use super::name::registrable;
use super::walk::{Ask, Asked, Found, Heard, Step, Walk};
use hickory_proto::rr::Name;
use model::host::HostName;
use std::collections::VecDeque;
use std::fmt;

/// The label before the domain, when the settings name none.
pub const DEFAULT_LABEL: &str = "_freestyle_custom_hostname";
/// Another label that is looked at as well: customers' own instructions have both.
pub const SECOND_LABEL: &str = "_freestyle-verification";
/// Records that an error shows, and how much of each: enough to find the mistake.
const SHOWN_TEXTS: usize = 3;
const SHOWN_CHARS: usize = 80;

/// Under which label the code stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labels {
    /// Asked first, and named in errors.
    pub first: String,
    /// Asked as well.
    pub second: String,
}

impl Default for Labels {
    fn default() -> Self {
        Self { first: DEFAULT_LABEL.to_owned(), second: SECOND_LABEL.to_owned() }
    }
}

/// A mistake in the record that was found, and its cure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hint {
    /// The provider appended the domain to a name that had it already.
    Doubled {
        /// Where the code stands.
        at: String,
    },
    /// The label was put below the registered domain and not below the name that is to be proved.
    Bare {
        /// Where the code stands.
        at: String,
    },
    /// The code stands at the domain itself.
    NoLabel {
        /// Where the code stands.
        at: String,
    },
}

/// What came of a proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// What was to be proved.
    pub domain: HostName,
    /// Where the code was to stand.
    pub expected: String,
    /// The code that was found, if any was.
    pub code: Option<String>,
    /// What each name has, in the order in which they were asked.
    pub names: Vec<(String, Found)>,
    /// All that was asked on the way.
    pub asked: Vec<Asked>,
    /// What may have gone wrong.
    pub hint: Option<Hint>,
}

impl Proof {
    /// Whether the servers were heard and have no such record, in contrast to not being heard.
    #[must_use]
    pub fn denied(&self) -> bool {
        let heard = |(_, found): &(String, Found)| !matches!(found, Found::Failed(_));
        self.code.is_none() && self.names.first().is_some_and(heard)
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.code.is_some() {
            return write!(f, "{} is proved", self.domain);
        }
        write!(f, "{} is not proved: no TXT record at {} has the code.", self.domain, self.expected)?;
        if let Some((name, found)) = self.names.first() {
            match found {
                Found::Texts { texts, server } => {
                    let shown: Vec<String> = texts.iter().take(SHOWN_TEXTS).map(|text| short(text)).collect();
                    write!(f, " {server} was asked about {name} and has {}", shown.join(", "))?;
                    if texts.len() > SHOWN_TEXTS {
                        write!(f, " and {} more", texts.len() - SHOWN_TEXTS)?;
                    }
                    write!(f, ".")?;
                }
                Found::NoRecords { server } => {
                    write!(f, " {server} was asked about {name} and says that it has no TXT record.")?;
                }
                Found::NoName { server } => {
                    write!(f, " {server} was asked about {name} and says that it does not exist.")?;
                }
                Found::Failed(why) => write!(f, " For {name}, {why}.")?,
            }
        }
        match &self.hint {
            None => Ok(()),
            Some(Hint::Doubled { at }) => write!(
                f,
                " The code stands at {at}: the provider appends the domain by itself, so give the record's name \
                 without it."
            ),
            Some(Hint::Bare { at }) => {
                write!(f, " The code stands at {at}: move it to {}.", self.expected)
            }
            Some(Hint::NoLabel { at }) => {
                write!(f, " The code stands at {at}: put it below that name, at {}.", self.expected)
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Expected,
    Doubled,
    Bare,
    NoLabel,
}

/// A proof under way.
#[derive(Debug)]
pub struct Proving {
    walk: Walk,
    proof: Proof,
    codes: Vec<String>,
    left: VecDeque<(Name, Role)>,
    role: Role,
}

/// What to do next for a proof.
#[derive(Debug)]
pub enum Next {
    /// Ask, and tell what came.
    Ask(Ask),
    /// It is over.
    Done(Proof),
}

impl Proving {
    /// Begins: any of the codes proves the domain.
    #[must_use]
    pub fn new(domain: &HostName, labels: &Labels, codes: Vec<String>, walk: Walk) -> Self {
        let left: VecDeque<(Name, Role)> = candidates(domain, labels).into();
        let proof = Proof {
            domain: domain.clone(),
            expected: format!("{}.{domain}", labels.first),
            code: None,
            names: Vec::new(),
            asked: Vec::new(),
            hint: None,
        };
        let mut proving = Self { walk, proof, codes, left, role: Role::Expected };
        if !proving.begin_next() {
            proving.walk.give_up("the name is too long for a record below it");
        }
        proving
    }

    /// What to do next.
    pub fn proceed(&mut self) -> Next {
        loop {
            let found = match self.walk.step() {
                Step::Ask(ask) => return Next::Ask(ask),
                Step::Done(found) => found,
            };
            if self.judge(found) || !self.begin_next() {
                self.proof.asked = self.walk.asked().to_vec();
                return Next::Done(self.proof.clone());
            }
        }
    }

    /// What came of the question.
    pub fn hear(&mut self, heard: Heard) {
        self.walk.hear(heard);
    }

    /// Ends it for want of time.
    pub fn give_up(&mut self, why: &str) {
        self.walk.give_up(why);
        self.left.clear();
    }

    fn begin_next(&mut self) -> bool {
        let Some((name, role)) = self.left.pop_front() else { return false };
        self.proof
            .names
            .push((name.to_ascii().trim_end_matches('.').to_owned(), Found::Failed(String::new())));
        self.role = role;
        self.walk.begin(name);
        true
    }

    /// Takes what a name has; tells whether the proof is over.
    fn judge(&mut self, found: Found) -> bool {
        let code = match &found {
            Found::Texts { texts, .. } => {
                texts.iter().find_map(|text| self.codes.iter().find(|code| means(text, code))).cloned()
            }
            Found::NoRecords { .. } | Found::NoName { .. } | Found::Failed(_) => None,
        };
        let lost = matches!(found, Found::Failed(_));
        let Some((at, last)) = self.proof.names.last_mut() else { return true };
        *last = found;
        let at = at.clone();
        let Some(code) = code else {
            // Who cannot be heard about the name itself will not be heard about its neighbours.
            if lost {
                self.left.retain(|(_, role)| *role == Role::Expected);
            }
            return false;
        };
        match self.role {
            Role::Expected => self.proof.code = Some(code),
            Role::Doubled => self.proof.hint = Some(Hint::Doubled { at }),
            Role::Bare => self.proof.hint = Some(Hint::Bare { at }),
            Role::NoLabel => self.proof.hint = Some(Hint::NoLabel { at }),
        }
        true
    }
}

/// Where the code may stand, then where people put it by mistake.
fn candidates(domain: &HostName, labels: &Labels) -> Vec<(Name, Role)> {
    let base = registrable(domain).unwrap_or_else(|| domain.clone());
    let mut wanted = vec![(format!("{}.{domain}.", labels.first), Role::Expected)];
    if labels.second != labels.first {
        wanted.push((format!("{}.{domain}.", labels.second), Role::Expected));
    }
    wanted.push((format!("{}.{domain}.{base}.", labels.first), Role::Doubled));
    if base != *domain {
        wanted.push((format!("{}.{base}.", labels.first), Role::Bare));
    }
    wanted.push((format!("{domain}."), Role::NoLabel));
    wanted.into_iter().filter_map(|(text, role)| Some((Name::from_ascii(text).ok()?, role))).collect()
}

/// Whether a record has the code: providers' forms add spaces and quotation marks.
fn means(text: &str, code: &str) -> bool {
    text.trim().trim_matches('"').trim() == code
}

fn short(text: &str) -> String {
    let shown: String = text.chars().take(SHOWN_CHARS).collect();
    format!("{shown:?}")
}

#[cfg(test)]
mod tests {
    use super::super::message::Said;
    use super::*;

    fn prove(domain: &str, world: impl Fn(&str) -> Heard) -> Proof {
        let walk = Walk::new(vec!["198.41.0.4".parse().expect("address")], false);
        let domain = domain.parse().expect("domain");
        let mut proving = Proving::new(&domain, &Labels::default(), vec!["code".to_owned()], walk);
        loop {
            match proving.proceed() {
                Next::Ask(ask) => proving.hear(world(&ask.question.name.to_ascii())),
                Next::Done(proof) => return proof,
            }
        }
    }

    fn texts(texts: &[&str]) -> Heard {
        let texts = texts.iter().map(|text| (*text).to_owned()).collect();
        Heard::Said(Said::Records { texts, addresses: vec![] })
    }

    fn at(place: &'static str, has: &'static [&'static str]) -> impl Fn(&str) -> Heard {
        move |name| if name == place { texts(has) } else { Heard::Said(Said::NoName) }
    }

    #[test]
    fn either_label_and_any_record_proves() {
        let places = ["_freestyle_custom_hostname.a.example.com.", "_freestyle-verification.a.example.com."];
        for place in places {
            let proof = prove("a.example.com", at(place, &["v=spf1", " \"code\" "]));
            assert_eq!((proof.code.as_deref(), proof.denied()), (Some("code"), false), "{place}");
        }
        let proof = prove("a.example.com", at(places[0], &["code2", "acode"]));
        assert!(proof.code.is_none() && proof.denied());
        assert!(
            proof.to_string().contains("198.41.0.4") && proof.to_string().contains("\"code2\", \"acode\"")
        );
    }

    #[test]
    fn usual_mistakes_are_told() {
        let hint = |place, sign: &str| {
            let proof = prove("a.example.com", at(place, &["code"]));
            assert!(proof.code.is_none() && proof.denied(), "{place}");
            let text = proof.to_string();
            assert!(text.contains(place.trim_end_matches('.')) && text.contains(sign), "{text}");
            proof.hint.expect("a hint")
        };
        let doubled = hint("_freestyle_custom_hostname.a.example.com.example.com.", "appends");
        assert!(matches!(doubled, Hint::Doubled { .. }));
        let bare = hint("_freestyle_custom_hostname.example.com.", "move it");
        assert!(matches!(bare, Hint::Bare { .. }));
        assert!(matches!(hint("a.example.com.", "below that name"), Hint::NoLabel { .. }));
    }

    #[test]
    fn not_being_heard_is_no_denial() {
        let proof = prove("example.com", |_| Heard::Silence);
        assert!(proof.code.is_none() && !proof.denied());
        assert!(proof.to_string().contains("did not answer in time"), "{proof}");
        assert_eq!(proof.names.len(), 2, "neighbours are not asked");
    }

    #[test]
    fn a_name_without_room_for_the_label_is_refused() {
        let long = format!("{}.{}.{}.{}.com", "a".repeat(60), "b".repeat(60), "c".repeat(60), "d".repeat(60));
        let proof = prove(&long, |_| Heard::Silence);
        assert!(proof.code.is_none());
    }
}
