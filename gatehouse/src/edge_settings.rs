//! The HTTPS front's part of the settings: flags `--edge-…`, and the table `[edge]` of the file.

use crate::settings::{SettingsError, value};
use clap::Args;
use model::config::{EdgeGuard, TraceExport, access_log_mib};
use model::range::IpRange;
use model::ratio::Ratio;
use serde::Deserialize;
use std::net::SocketAddr;

/// Most ranges of trusted load balancers: each connection is compared with all of them.
const MAX_BALANCERS: usize = 64;

/// What is said of the HTTPS front.
#[derive(Args, Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct EdgeWishes {
    /// Load balancers in front, whose connections begin with a PROXY header (address or CIDR). May be repeated
    #[arg(id = "edge_proxy_protocol_from", long = "edge-proxy-protocol-from", value_name = "CIDR")]
    pub proxy_protocol_from: Vec<IpRange>,
    /// Where Prometheus may ask for the HTTPS front's figures, `127.0.0.1:9464` for one; nowhere without it
    #[arg(id = "edge_metrics_listen", long = "edge-metrics-listen", value_name = "ADDRESS")]
    pub metrics_listen: Option<SocketAddr>,
    /// Largest file of the access log in MiB, of which there are four; 0 for none [default: 32]
    #[arg(id = "edge_access_log_mib", long = "edge-access-log-mib", value_name = "MIB")]
    pub access_log_mib: Option<u32>,
    /// A collector that is told of requests as spans: OTLP over plain HTTP, `127.0.0.1:4318` for one; none without it
    #[arg(id = "edge_otlp_endpoint", long = "edge-otlp-endpoint", value_name = "ADDRESS:PORT")]
    pub otlp_endpoint: Option<SocketAddr>,
    /// The part of the traces that begin here which is recorded, from 0 to 1; others as their client says [default: 1]
    #[arg(id = "edge_otlp_ratio", long = "edge-otlp-ratio", value_name = "RATIO")]
    pub otlp_ratio: Option<Ratio>,
    /// Bounds, in the file alone.
    #[arg(skip)]
    pub limits: Option<EdgeGuard>,
}

/// What is true of the HTTPS front.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EdgeSettings {
    /// Load balancers in front.
    pub proxy_protocol_from: Vec<IpRange>,
    /// Where Prometheus may ask.
    pub metrics_listen: Option<SocketAddr>,
    /// Largest file of the access log, in MiB.
    pub access_log_mib: u32,
    /// Where spans of requests are told.
    pub traces: Option<TraceExport>,
    /// What one client, and one host, may take.
    pub limits: EdgeGuard,
}

impl EdgeWishes {
    /// Joins two sources: what `self` says wins.
    #[must_use]
    pub fn over(self, below: Self) -> Self {
        Self {
            proxy_protocol_from: if self.proxy_protocol_from.is_empty() {
                below.proxy_protocol_from
            } else {
                self.proxy_protocol_from
            },
            metrics_listen: self.metrics_listen.or(below.metrics_listen),
            access_log_mib: self.access_log_mib.or(below.access_log_mib),
            otlp_endpoint: self.otlp_endpoint.or(below.otlp_endpoint),
            otlp_ratio: self.otlp_ratio.or(below.otlp_ratio),
            limits: self.limits.or(below.limits),
        }
    }

    /// Fills in what nobody said, and checks all of it.
    ///
    /// # Errors
    /// [`SettingsError::Value`] for the first value that cannot be.
    pub fn settle(self) -> Result<EdgeSettings, SettingsError> {
        if self.proxy_protocol_from.len() > MAX_BALANCERS {
            let why = format!("at most {MAX_BALANCERS} ranges can be named; join some of them");
            return Err(value("edge.proxy-protocol-from", self.proxy_protocol_from.len(), why));
        }
        if let (None, Some(ratio)) = (self.otlp_endpoint, self.otlp_ratio) {
            let why = "nobody is told of traces; name a collector with edge.otlp-endpoint".to_owned();
            return Err(value("edge.otlp-ratio", ratio, why));
        }
        let ratio = self.otlp_ratio.unwrap_or(Ratio::ALL);
        Ok(EdgeSettings {
            proxy_protocol_from: self.proxy_protocol_from,
            metrics_listen: self.metrics_listen,
            access_log_mib: self.access_log_mib.unwrap_or_else(access_log_mib),
            traces: self.otlp_endpoint.map(|endpoint| TraceExport { endpoint, ratio }),
            limits: self.limits.unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> EdgeWishes {
        toml::from_str(text).expect("wishes")
    }

    #[test]
    fn what_is_not_said_is_the_default() {
        let settings = read("[limits]\nrequests_per_second_per_host = 500").settle().expect("good");
        assert_eq!(settings.limits.requests_per_second_per_host, 500);
        assert_eq!(settings.limits.connections_per_address, EdgeGuard::default().connections_per_address);
        assert!(settings.proxy_protocol_from.is_empty(), "nobody is trusted by default");
        let file = read("proxy-protocol-from = [\"10.0.0.0/8\"]\n[limits]\nconnections_per_address = 0");
        let flags = read("proxy-protocol-from = [\"2001:db8::1\"]");
        let both = flags.over(file).settle().expect("good");
        assert_eq!(both.proxy_protocol_from, ["2001:db8::1/128".parse().expect("range")]);
        assert_eq!(both.limits.connections_per_address, 0);
        assert_eq!(both.traces, None, "nobody is told of anything by default");
        let all = read("otlp-endpoint = \"127.0.0.1:4318\"").settle().expect("good");
        assert_eq!(all.traces.map(|traces| traces.ratio), Some(Ratio::ALL));
        let some =
            read("otlp-ratio = 0.25").over(read("otlp-endpoint = \"[::1]:4318\"")).settle().expect("good");
        assert_eq!(some.traces.map(|traces| traces.ratio.to_string()).as_deref(), Some("0.25"));
    }

    #[test]
    fn bad_values_are_named() {
        let many: Vec<String> = (0..65).map(|n| format!("\"10.0.{n}.0/24\"")).collect();
        let error = read(&format!("proxy-protocol-from = [{}]", many.join(","))).settle().expect_err("many");
        assert!(error.to_string().starts_with("edge.proxy-protocol-from = 65"), "{error}");
        let error = read("otlp-ratio = 0.5").settle().expect_err("nobody is told");
        assert!(error.to_string().starts_with("edge.otlp-ratio = 0.5"), "{error}");
        for misspelt in [
            "proxy-protocol-from = [\"10.0.0.1/8\"]",
            "proxy-protocol-from = \"10.0.0.0/8\"",
            "proxy_protocol_from = []",
            "[limits]\nconections_per_address = 1",
            "[limits]\nconnections_per_address = -1",
            "otlp-endpoint = \"collector:4318\"",
            "otlp-ratio = 1.5",
        ] {
            assert!(toml::from_str::<EdgeWishes>(misspelt).is_err(), "{misspelt}");
        }
    }
}
