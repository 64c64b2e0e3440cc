//! TLS: its keys die with the daemon. So its connections are lost, and said to be; the listener stays.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use evloopd::proto::*;
use tokio::task::JoinSet;

use super::connections::{Fate, listen, port, serve};
use crate::client::Site;
use crate::common::{tcp_listener, tls};
use crate::field::Hand;

pub(super) async fn listener(hand: Hand) {
    let inbox = hand.inbox();
    let spec = ListenerSpec {
        tls: Some(TlsOptions {
            config: "web".into(),
            ..TlsOptions::default()
        }),
        ..tcp_listener()
    };
    let (id, address) = listen(&hand, &inbox, spec).await;
    let port = port(&address);
    let site = Arc::clone(&hand.field.site);
    let mut peers = JoinSet::new();
    peers.spawn_blocking(move || call_again(&site, port));
    serve(&hand, inbox, id, Fate::Tls, peers).await;
}

/// Makes connections one after the other, and talks over each until the daemon dies.
fn call_again(site: &Site, port: u16) {
    let config = Arc::new(tls::client(None));
    while !site.is_over() {
        let deaths = site.deaths_so_far();
        match talk(port, &config) {
            Ok(()) => site.figures.count("TLS connections completed", 1),
            Err(error) => {
                assert!(site.deaths_so_far() > deaths, "{error}");
                site.figures.count("TLS connections ended by deaths", 1);
            }
        }
    }
}

fn talk(port: u16, config: &Arc<rustls::ClientConfig>) -> std::io::Result<()> {
    let socket = TcpStream::connect(("127.0.0.1", port))?;
    let mut peer = tls::shake(socket, Arc::clone(config), "localhost")?;
    for number in 0..50_u64 {
        peer.write_all(&number.to_be_bytes())?;
        let mut back = [0; 8];
        peer.read_exact(&mut back)?;
        assert_eq!(u64::from_be_bytes(back), number);
        std::thread::sleep(Duration::from_millis(5));
    }
    peer.conn.send_close_notify();
    peer.flush()?;
    peer.read_to_end(&mut Vec::new())?;
    Ok(())
}
