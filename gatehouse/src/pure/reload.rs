//! What of new settings can be in force while the house is open, and what waits for its next start.
//!
//! edge-proxy is replaced by a new process, so what it alone is told can change. The other programs keep what they were
//! started with: to restart them would break calls and logins, which a reload does not do.

use crate::edge_settings::EdgeSettings;
use crate::settings::Settings;

/// New settings, judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// The old ones, with what can change.
    pub settings: Settings,
    /// What changes now, by the names of the settings file.
    pub now: Vec<&'static str>,
    /// What differs and waits for the next start.
    pub later: Vec<&'static str>,
}

/// Judges new settings against those in force.
#[must_use]
pub fn judge(old: &Settings, new: &Settings) -> Judged {
    let mut settings = old.clone();
    settings.public_https_port = new.public_https_port;
    settings.max_connections = new.max_connections;
    // Its port is bound at the start, as the doors' are.
    settings.edge = EdgeSettings { metrics_listen: old.edge.metrics_listen, ..new.edge.clone() };
    Judged { settings, now: changing(old, new), later: waiting(old, new) }
}

fn changing(old: &Settings, new: &Settings) -> Vec<&'static str> {
    let EdgeSettings { proxy_protocol_from, limits, access_log_mib, traces, metrics_listen: _ } = &new.edge;
    named(&[
        ("public-https-port", new.public_https_port != old.public_https_port),
        ("max-connections", new.max_connections != old.max_connections),
        ("edge.proxy-protocol-from", *proxy_protocol_from != old.edge.proxy_protocol_from),
        ("edge.limits", *limits != old.edge.limits),
        ("edge.otlp-endpoint, edge.otlp-ratio", *traces != old.edge.traces),
        ("edge.access-log-mib", *access_log_mib != old.edge.access_log_mib),
    ])
}

/// Each setting is named, so that a new one cannot be forgotten here.
fn waiting(old: &Settings, new: &Settings) -> Vec<&'static str> {
    let Settings {
        data_dir,
        run_dir,
        domain,
        https,
        http,
        public_https_port: _,
        api_listen,
        default_network,
        prefix,
        upstream_dns,
        image_dir,
        default_image,
        kernel_arguments,
        default_size,
        limits,
        console_bytes: _,
        max_connections: _,
        flow_log,
        metrics_listen,
        edge,
        vpn,
        ssh,
        acme,
        domains,
    } = new;
    named(&[
        ("data-dir", *data_dir != old.data_dir),
        ("run-dir", *run_dir != old.run_dir),
        ("domain", *domain != old.domain),
        ("https", *https != old.https),
        ("http", *http != old.http),
        ("api-listen", *api_listen != old.api_listen),
        ("default-network", *default_network != old.default_network),
        ("prefix", *prefix != old.prefix),
        ("upstream-dns", *upstream_dns != old.upstream_dns),
        ("image-dir", *image_dir != old.image_dir),
        ("default-image", *default_image != old.default_image),
        ("kernel-arguments", *kernel_arguments != old.kernel_arguments),
        ("default-vcpus, default-memory-mib, default-disk-mib", *default_size != old.default_size),
        ("bounds of VMs and snapshots", *limits != old.limits),
        ("flow-log", *flow_log != old.flow_log),
        ("metrics-listen", *metrics_listen != old.metrics_listen),
        ("edge.metrics-listen", edge.metrics_listen != old.edge.metrics_listen),
        ("vpn", *vpn != old.vpn),
        ("ssh", *ssh != old.ssh),
        ("acme, dns", *acme != old.acme),
        ("domains", *domains != old.domains),
    ])
}

fn named(changes: &[(&'static str, bool)]) -> Vec<&'static str> {
    changes.iter().filter(|(_, changed)| *changed).map(|(name, _)| *name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Host, Wishes};

    fn settings(text: &str) -> Settings {
        let wishes: Wishes = toml::from_str(text).expect("wishes");
        wishes.settle(Host { memory_mib: 8192 }).expect("settings")
    }

    #[test]
    fn the_doors_own_bounds_change_and_all_else_waits() {
        let old = settings("max-connections = 10");
        let new = settings(
            "max-connections = 20\nhttps = \"0.0.0.0:8443\"\npublic-https-port = 443\ndomain = \"example.org\"\n\
             [edge]\nmetrics-listen = \"127.0.0.1:9464\"\naccess-log-mib = 1\nproxy-protocol-from = [\"10.0.0.0/8\"]\n[edge.limits]\nconnections_per_address = 7",
        );
        let judged = judge(&old, &new);
        assert_eq!(
            judged.now,
            ["max-connections", "edge.proxy-protocol-from", "edge.limits", "edge.access-log-mib"]
        );
        assert!(judged.later.contains(&"domain") && judged.later.contains(&"https"));
        let in_force = (judged.settings.max_connections, judged.settings.edge.limits.connections_per_address);
        assert_eq!(in_force, (20, 7));
        assert_eq!((&judged.settings.domain, judged.settings.https), (&old.domain, old.https));
        // What was taken is no change the second time; what waits is told again.
        let again = judge(&judged.settings, &new);
        assert!(again.now.is_empty() && again.later == judged.later);
    }

    #[test]
    fn nothing_new_is_nothing_changed() {
        let old = settings("");
        assert_eq!(judge(&old, &old), Judged { settings: old.clone(), now: Vec::new(), later: Vec::new() });
    }
}
