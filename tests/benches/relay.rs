//! The contenders of the packet paths, each as a process of its own. They parse nothing and check nothing.
//!
//! `bench_relay [naive|tokio|segmenting] <listen address> <viewer address>...`; tokio without a name.

#[path = "kernel/relays.rs"]
mod relays;

use std::net::{SocketAddrV4, UdpSocket};

use anyhow::{Context as _, bail};

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1).peekable();
    let kind = args.next_if(|a| a.parse::<SocketAddrV4>().is_err()).unwrap_or_else(|| "tokio".to_owned());
    let listen: SocketAddrV4 = args.next().context("missing listen address")?.parse()?;
    let viewers = args.map(|a| a.parse()).collect::<Result<Vec<SocketAddrV4>, _>>()?;
    let socket = UdpSocket::bind(listen)?;
    match kind.as_str() {
        "naive" => {
            let mut relay = relays::Naive::new(socket, &viewers)?;
            loop {
                relay.forward()?;
            }
        }
        "segmenting" => {
            let mut relay = relays::Segmenting::new(socket, &viewers)?;
            loop {
                relay.forward()?;
            }
        }
        "tokio" => tokio::runtime::Builder::new_current_thread().enable_io().build()?.block_on(async {
            let mut relay = relays::Tokio::new(socket, &viewers)?;
            loop {
                relay.forward().await?;
            }
        }),
        other => bail!("unknown relay {other}"),
    }
}
