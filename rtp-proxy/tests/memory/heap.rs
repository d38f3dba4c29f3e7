//! An allocator that counts what the threads of the proxy hold, and on request remembers who asked for it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

pub(crate) struct Heap;

static BYTES: AtomicI64 = AtomicI64::new(0);
static REMEMBERS: AtomicBool = AtomicBool::new(false);
/// Blocks by address: their bytes, and the call that led to them.
static BLOCKS: Mutex<Option<HashMap<usize, (i64, Backtrace)>>> = Mutex::new(None);

thread_local! {
    /// Whether what this thread does is not the proxy's.
    static APART: Cell<bool> = const { Cell::new(false) };
}

/// What the calling thread allocates and gives back is not counted from here on.
pub(crate) fn stand_apart() {
    APART.set(true);
}

/// Bytes that the proxy holds.
pub(crate) fn bytes() -> i64 {
    BYTES.load(Ordering::Relaxed)
}

/// From here on it is remembered who asked for a block.
pub(crate) fn remember() {
    *blocks() = Some(HashMap::new());
    REMEMBERS.store(true, Ordering::Relaxed);
}

/// Bytes and blocks that were asked for since [`remember`] and not given back, by who asked. To be called on a
/// thread that stands apart.
pub(crate) fn owners() -> BTreeMap<String, (i64, usize)> {
    REMEMBERS.store(false, Ordering::Relaxed);
    let blocks = blocks().take().unwrap_or_default();
    let mut owners = BTreeMap::<String, (i64, usize)>::new();
    for (bytes, trace) in blocks.values() {
        let owner = owners.entry(owner(&trace.to_string())).or_default();
        owner.0 += bytes;
        owner.1 += 1;
    }
    owners
}

/// The innermost functions of ours in a printed backtrace.
fn owner(trace: &str) -> String {
    let frames = trace.lines().filter_map(|line| {
        let name = line.trim_start().split_once(": ")?.1.trim_start_matches('<');
        let ours = ["rtp_proxy::", "msm_"].iter().any(|krate| name.starts_with(krate));
        (ours && !name.contains("memory::heap")).then(|| name.split("::{{").next().unwrap_or(name).to_owned())
    });
    let mut frames: Vec<String> = frames.collect();
    frames.dedup();
    frames.truncate(3);
    if frames.is_empty() { "others".to_owned() } else { frames.join(" < ") }
}

fn blocks() -> MutexGuard<'static, Option<HashMap<usize, (i64, Backtrace)>>> {
    BLOCKS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes that glibc's allocator spends on a block of so many: a word before it, in steps of 16.
fn chunk(size: usize) -> i64 {
    (size + 8).next_multiple_of(16).max(32) as i64
}

impl Heap {
    fn took(block: *mut u8, size: usize) {
        if APART.get() || block.is_null() {
            return;
        }
        BYTES.fetch_add(chunk(size), Ordering::Relaxed);
        if REMEMBERS.load(Ordering::Relaxed) {
            // What remembering takes is not the proxy's.
            APART.set(true);
            let trace = Backtrace::force_capture();
            if let Some(blocks) = blocks().as_mut() {
                blocks.insert(block as usize, (chunk(size), trace));
            }
            APART.set(false);
        }
    }

    fn gave(block: *mut u8, size: usize) {
        if APART.get() {
            return;
        }
        BYTES.fetch_sub(chunk(size), Ordering::Relaxed);
        if REMEMBERS.load(Ordering::Relaxed) {
            APART.set(true);
            drop(blocks().as_mut().and_then(|blocks| blocks.remove(&(block as usize))));
            APART.set(false);
        }
    }
}

// SAFETY: every call is passed on to the system's allocator as it came, and its answer returned as it is.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise about `layout` is what the system's allocator asks for.
        let block = unsafe { System.alloc(layout) };
        Self::took(block, layout.size());
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        Self::gave(block, layout.size());
        // SAFETY: the caller got `block` of `layout` from us, that is from the system's allocator.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        Self::gave(block, layout.size());
        // SAFETY: as for `dealloc`, and the caller's promise about `size` is what it asks for.
        let moved = unsafe { System.realloc(block, layout, size) };
        if moved.is_null() {
            Self::took(block, layout.size());
        } else {
            Self::took(moved, size);
        }
        moved
    }
}
