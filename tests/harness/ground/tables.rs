//! The kernel's own tables of a running proxy, found by its open descriptors and read by system calls.
//!
//! Layouts are taken from the golden record that the kernel programs are checked against, so nothing of the
//! proxy's code stands between its counters and a test.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};

use anyhow::{Result, bail};

/// What kernel and user space share, as reviewed.
const ABI: &str = include_str!("../../../rtp-proxy-ebpf/abi.txt");

// Commands of bpf(2).
const LOOKUP: libc::c_long = 1;
const NEXT_KEY: libc::c_long = 4;
const FD_BY_ID: libc::c_long = 14;
const INFO: libc::c_long = 15;
/// Most flows that are looked at: a bound, not a measure.
const FLOWS: usize = 4_096;

/// The tables of one process, as far as they were found.
#[derive(Debug, Default)]
pub(super) struct Tables {
    flows: Option<Map>,
    legs: Option<Map>,
    counts: Option<Map>,
    gates: Option<Map>,
    ports: Option<Map>,
}

/// What is in the kernel's tables of a proxy.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Fill {
    /// Entries of FLOWS.
    pub flows: usize,
    /// Slots of LEGS that those name.
    pub legs: usize,
    /// Entries of GATES that let something pass, or may.
    pub gates: usize,
    /// Entries of PORTS.
    pub ports: usize,
}

/// Looks at the kernel's tables of a process.
///
/// # Errors
/// It has none, or they may not be read.
pub fn fill_of(pid: u32) -> Result<Fill> {
    let mut tables = Tables::default();
    tables.find(pid);
    let Tables { flows: Some(flows), gates: Some(gates), ports: Some(ports), .. } = &tables else {
        bail!("process {pid} has no tables in the kernel");
    };
    let legs = field("FlowEntry", "legs");
    let flows = flows.values();
    let state = field("GateEntry", "state");
    let open = |number: &u32| {
        let gate = gates.lookup(&number.to_ne_bytes());
        gate.is_some_and(|gate| gate.get(state).is_some_and(|state| *state != 0))
    };
    Ok(Fill {
        legs: flows.iter().map(|flow| usize::from(u32_at(flow, legs) as u16)).sum(),
        flows: flows.len(),
        gates: (0..gates.entries).filter(open).count(),
        ports: ports.values().len(),
    })
}

#[derive(Debug)]
struct Map {
    fd: OwnedFd,
    entries: u32,
    key: usize,
    /// Bytes of a lookup: of all CPUs where there is one value for each.
    value: usize,
}

impl Tables {
    /// Packets that the kernel sent to every leg in it now, by its number.
    pub(super) fn legs(&mut self, pid: u32) -> BTreeMap<u32, u64> {
        if self.counts.is_none() {
            self.find(pid);
        }
        let mut found = BTreeMap::new();
        let (Some(flows), Some(legs), Some(counts)) = (&self.flows, &self.legs, &self.counts) else {
            return found;
        };
        let (first, number) = (field("FlowEntry", "first_leg"), field("FlowEntry", "legs"));
        let id = field("LegEntry", "id");
        for entry in flows.values() {
            let first = u32_at(&entry, first);
            for slot in first..first + u32_at(&entry, number) as u16 as u32 {
                let Some(leg) = legs.lookup(&slot.to_ne_bytes()) else { continue };
                let leg = u32_at(&leg, id);
                let size = size("LegStats");
                let Some(cpus) = counts.lookup(&leg.to_ne_bytes()) else { continue };
                let packets = field("LegStats", "packets");
                found.insert(leg, cpus.chunks_exact(size).map(|cpu| u64_at(cpu, packets)).sum());
            }
        }
        found
    }

    fn find(&mut self, pid: u32) {
        let entries = std::fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten();
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            let line =
                |name| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u32>().ok());
            let Some((name, map)) = line("map_id:").and_then(Map::open) else { continue };
            match name.as_str() {
                "FLOWS" => self.flows = Some(map),
                "LEGS" => self.legs = Some(map),
                "LEG_STATS" => self.counts = Some(map),
                "GATES" => self.gates = Some(map),
                "PORTS" => self.ports = Some(map),
                _ => {}
            }
        }
    }
}

impl Map {
    /// The map of this number, and its name.
    fn open(id: u32) -> Option<(String, Self)> {
        let mut attr = [0_u8; 16];
        attr[..4].copy_from_slice(&id.to_ne_bytes());
        let fd = RawFd::try_from(call(FD_BY_ID, &mut attr)?).ok()?;
        // SAFETY: the kernel has just made this descriptor for us, and nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // struct bpf_map_info: type, id, key_size, value_size, max_entries, map_flags, name[16].
        let mut info = [0_u8; 40];
        let mut attr = [0_u8; 16];
        attr[..4].copy_from_slice(&fd.as_raw_fd().to_ne_bytes());
        attr[4..8].copy_from_slice(&(info.len() as u32).to_ne_bytes());
        attr[8..].copy_from_slice(&(info.as_mut_ptr() as u64).to_ne_bytes());
        call(INFO, &mut attr)?;
        let (key, value) = (u32_at(&info, 8) as usize, u32_at(&info, 12) as usize);
        let entries = u32_at(&info, 16);
        // BPF_MAP_TYPE_PERCPU_HASH and BPF_MAP_TYPE_PERCPU_ARRAY.
        let value =
            if [5, 6].contains(&u32_at(&info, 0)) { value.next_multiple_of(8) * cpus() } else { value };
        let name = info[24..].iter().take_while(|byte| **byte != 0).map(|byte| char::from(*byte)).collect();
        Some((name, Self { fd, entries, key, value }))
    }

    fn lookup(&self, key: &[u8]) -> Option<Vec<u8>> {
        let mut value = vec![0; self.value];
        self.ask(LOOKUP, Some(key), &mut value).then_some(value)
    }

    /// Every value of a hash.
    fn values(&self) -> Vec<Vec<u8>> {
        let (mut values, mut last) = (Vec::new(), None::<Vec<u8>>);
        while values.len() < FLOWS {
            let mut next = vec![0; self.key];
            if !self.ask(NEXT_KEY, last.as_deref(), &mut next) {
                break;
            }
            values.extend(self.lookup(&next));
            last = Some(next);
        }
        values
    }

    fn ask(&self, command: libc::c_long, key: Option<&[u8]>, answer: &mut [u8]) -> bool {
        debug_assert!(key.is_none_or(|key| key.len() == self.key), "the kernel reads a whole key");
        // map_fd and padding, key, value or next key, flags.
        let mut attr = [0_u8; 32];
        attr[..4].copy_from_slice(&self.fd.as_raw_fd().to_ne_bytes());
        attr[8..16].copy_from_slice(&key.map_or(0, |key| key.as_ptr() as u64).to_ne_bytes());
        attr[16..24].copy_from_slice(&(answer.as_mut_ptr() as u64).to_ne_bytes());
        call(command, &mut attr).is_some()
    }
}

/// bpf(2). Every address inside `attr` is of a buffer of its caller, as long as the kernel takes it to be.
fn call(command: libc::c_long, attr: &mut [u8]) -> Option<libc::c_long> {
    // SAFETY: `attr` is valid for its length, and so are the buffers that it names, by the callers here.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), attr.len()) };
    (done >= 0).then_some(done)
}

/// CPUs that there may be: a value of each is read.
fn cpus() -> usize {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible").unwrap_or_default();
    text.trim()
        .rsplit(['-', ','])
        .next()
        .and_then(|last| last.parse::<usize>().ok())
        .map_or(1, |last| last + 1)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|word| word.try_into().ok()).map_or(0, u64::from_ne_bytes)
}

/// Lines of a type in the record, its head first.
fn lines(of: &str) -> impl Iterator<Item = Vec<&'static str>> {
    let head = format!("type {of} ");
    let rest = ABI.find(&head).map_or("", |at| &ABI[at..]);
    rest.lines().take_while(|line| !line.is_empty()).map(|line| line.split_whitespace().collect())
}

/// Bytes of a type.
fn size(of: &str) -> usize {
    lines(of).next().and_then(|words| words.get(3)?.parse().ok()).expect("the type is in the record")
}

/// Offset of a field.
fn field(of: &str, name: &str) -> usize {
    let at = |words: Vec<&str>| (words.get(2) == Some(&name)).then(|| words[0].parse().ok())?;
    lines(of).skip(1).find_map(at).expect("the field is in the record")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_those_of_the_record() {
        assert!(size("LegStats") >= field("LegStats", "packets") + 8);
        assert!(size("LegEntry") >= field("LegEntry", "id") + 4);
        assert!(field("FlowEntry", "first_leg") < field("FlowEntry", "legs"));
    }
}
