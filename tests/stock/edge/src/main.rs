//! `stock-edge LISTEN SERVER PEM`: an HTTPS front as one writes it with Pingora's own server, to be started by the tests of
//! edge-proxy in its place (`tests/stock/edge/run`). All that comes to LISTEN goes to SERVER; PEM has key and certificate.

use anyhow::{Context, Result};
use pingora::listeners::tls::TlsSettings;
use pingora::proxy::{ProxyHttp, Session, http_proxy_service};
use pingora::server::Server;
use pingora::server::configuration::ServerConf;
use pingora::upstreams::peer::HttpPeer;

struct Front {
    server: String,
}

#[async_trait::async_trait]
impl ProxyHttp for Front {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(&self, _session: &mut Session, (): &mut ()) -> pingora::Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(self.server.as_str(), false, String::new())))
    }
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, listen, server, pem] = &arguments[..] else { anyhow::bail!("stock-edge LISTEN SERVER PEM") };
    // As many threads as the gateway has under test, which is one for each core.
    let threads = std::thread::available_parallelism()?.get();
    let mut front = Server::new_with_opt_and_conf(None, ServerConf { threads, ..ServerConf::default() });
    front.bootstrap();
    let mut service = http_proxy_service(&front.configuration, Front { server: server.clone() });
    let mut tls = TlsSettings::intermediate(pem, pem).context("no key or no certificate")?;
    tls.enable_h2();
    service.add_tls_with_settings(listen, None, tls);
    front.add_service(service);
    front.run_forever()
}
