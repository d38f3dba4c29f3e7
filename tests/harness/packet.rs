//! Captures and their analysis by tshark: a view of loss and jitter that is not ours.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use crate::camera::Stage;
use crate::process::{Launch, Process, output};

/// A running capture.
#[derive(Debug)]
pub struct Capture {
    process: Process,
    file: PathBuf,
}

/// One line of `tshark -z rtp,streams`.
#[derive(Debug, Clone, PartialEq)]
pub struct RtpStream {
    /// Source address and port.
    pub source: (String, u16),
    /// Destination address and port.
    pub destination: (String, u16),
    /// Synchronisation source.
    pub ssrc: u32,
    /// Packets seen.
    pub packets: u64,
    /// Packets missing; negative when some came twice.
    pub lost: i64,
    /// Largest and mean jitter in milliseconds.
    pub jitter: (f64, f64),
}

impl Capture {
    /// Captures an interface with a pcap filter, by dumpcap with a 64 MiB buffer, and waits until it runs.
    pub fn start(stage: Stage<'_>, name: &str, interface: &str, filter: &str) -> Result<Self> {
        let file = stage.scratch.join(format!("{name}.pcap"));
        let mut process = Launch::inside(name, stage.node, "dumpcap")
            .args(["-q", "-P", "-B", "64", "-i", interface, "-f", filter, "-w"])
            .arg(&file)
            .start(stage.scratch)?;
        process.wait_for_line("File:", Duration::from_secs(10))?;
        Ok(Self { process, file })
    }

    /// Ends it and returns the file; fails when the kernel dropped packets of the capture.
    pub fn finish(mut self) -> Result<PathBuf> {
        self.process.stop(Signal::SIGINT, Duration::from_secs(5))?;
        let log = self.process.log();
        // "Packets received/dropped on interface 'lo': 812/0 (pcap:0/dumpcap:0/flushed:0/ps_ifdrop:0) (100.0%)"
        let dropped = log
            .lines()
            .find(|line| line.contains("received/dropped"))
            .and_then(|line| line.rsplit("': ").next()?.split([' ', '/']).nth(1))
            .and_then(|number| number.parse::<u64>().ok());
        ensure!(dropped == Some(0), "the capture is not complete:\n{log}");
        Ok(self.file)
    }
}

/// RTP streams of a capture. `ports`: UDP ports to decode as RTP, because no SDP told tshark about them.
pub fn rtp_streams(file: &Path, ports: &[u16]) -> Result<Vec<RtpStream>> {
    let file = file.to_string_lossy();
    let mut args =
        vec!["-r".to_owned(), file.into_owned(), "-q".to_owned(), "-z".to_owned(), "rtp,streams".to_owned()];
    for port in ports {
        args.extend(["-d".to_owned(), format!("udp.port=={port},rtp")]);
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let text = output("tshark", &args).context("tshark")?;
    Ok(text.lines().filter_map(stream_line).collect())
}

/// `0.00  4.99  127.0.0.1 8060 127.0.0.1 50000 0x12345678 h264 501 0 (0.0%) 0.1 1.2 0.3 ...`
fn stream_line(line: &str) -> Option<RtpStream> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let ssrc = words.iter().position(|word| word.starts_with("0x"))?;
    let number = |at: usize| words.get(at)?.parse::<f64>().ok();
    let lost = words.iter().position(|word| word.starts_with('(') && word.contains('%'))?;
    // After the loss: min, mean and max delta, then min, mean and max jitter.
    Some(RtpStream {
        source: ((*words.get(ssrc - 4)?).to_owned(), words.get(ssrc - 3)?.parse().ok()?),
        destination: ((*words.get(ssrc - 2)?).to_owned(), words.get(ssrc - 1)?.parse().ok()?),
        ssrc: u32::from_str_radix(words[ssrc].trim_start_matches("0x"), 16).ok()?,
        packets: words.get(lost - 2)?.parse().ok()?,
        lost: words.get(lost - 1)?.parse().ok()?,
        jitter: (number(lost + 6)?, number(lost + 5)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_tshark_is_read() {
        let line = "     0.000000     1.980000       127.0.0.1  8060       127.0.0.1 41000  0x00001234    RTPType-96   \
                    \x20 95    5 (5.0%)        9.90           20.00           40.10           0.00            0.50      \
                    \x20      1.25  X";
        let stream = stream_line(line).unwrap();
        assert_eq!((stream.ssrc, stream.packets, stream.lost), (0x1234, 95, 5));
        assert_eq!((stream.source.1, stream.destination.1, stream.jitter), (8060, 41_000, (1.25, 0.5)));
    }
}
