//! Which crate may name which: the committed list of edges, against cargo's metadata.

use super::Problem;
use serde_json::Value;

/// Everything else is an error. A change of this list is a change of the architecture (see ARCHITECTURE.md).
const ALLOWED: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("dns-verify", &["model"]),
    ("feed", &["model"]),
    ("vpc", &["feed", "model"]),
    ("vmm", &["vpc", "feed", "model"]),
    ("edge-proxy", &["vpc", "feed", "model"]),
    ("vpn", &["vpc", "feed", "model"]),
    ("ssh-proxy", &["vmm", "vpc", "feed", "model"]),
    ("control", &["dns-verify", "feed", "model", "ssh-proxy", "vmm", "vpc", "vpn"]),
    ("guest-agent", &["model"]),
    ("gatehouse", &["model", "vpc"]),
    (
        "tests",
        &[
            "control",
            "dns-verify",
            "edge-proxy",
            "feed",
            "gatehouse",
            "guest-agent",
            "model",
            "ssh-proxy",
            "vmm",
            "vpc",
            "vpn",
        ],
    ),
    ("xtask", &[]),
];

/// Checks each path dependency of each crate.
pub fn check(metadata: &Value) -> Vec<Problem> {
    let mut problems = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = package["name"].as_str().unwrap_or_default();
        let place = format!("{name}/Cargo.toml");
        let Some((_, allowed)) = ALLOWED.iter().find(|(from, _)| *from == name) else {
            problems.push(Problem::new(place, 0, "a new crate: put it into xtask/src/check/edges.rs"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let to = dependency["name"].as_str().unwrap_or_default();
            // A crate may name itself for its tests, to turn its own features on.
            if dependency["path"].is_string() && to != name && !allowed.contains(&to) {
                let what =
                    format!("{name} must not name {to}: the arrows of ARCHITECTURE.md do not have this one");
                problems.push(Problem::new(place.clone(), 0, what));
            }
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn metadata(from: &str, to: &str) -> Value {
        json!({"packages": [{"name": from, "dependencies": [{"name": to, "path": "/x"}, {"name": "serde"}]}]})
    }

    #[test]
    fn only_the_listed_arrows_are_allowed() {
        assert_eq!(check(&metadata("vmm", "vpc")), []);
        assert_eq!(check(&metadata("vpc", "vpc")), []);
        assert_eq!(check(&metadata("edge-proxy", "control")).len(), 1);
        assert_eq!(check(&metadata("model", "feed")).len(), 1);
        assert_eq!(check(&metadata("newcomer", "model")).len(), 1);
    }

    #[test]
    fn the_list_has_no_cycle_and_nobody_names_control_but_the_tests() {
        fn walk(name: &str, left: usize) {
            assert!(left > 0, "a cycle through {name}");
            let (_, to) = ALLOWED.iter().find(|(from, _)| *from == name).expect("listed");
            to.iter().for_each(|next| walk(next, left - 1));
        }
        for (from, to) in ALLOWED {
            walk(from, ALLOWED.len());
            assert!(*from == "tests" || !to.contains(&"control"));
        }
    }
}
