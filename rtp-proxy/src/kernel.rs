//! The kernel half as user space sees it: the only code that talks to aya.
//!
//! `service` owns the thread that loads and attaches the programs, keeps them over restarts and answers where
//! packets come from and go to; `share` is what each worker has of it: tables, indices and answers.

pub mod attach;
mod batcher;
pub mod batching;
pub mod counters;
pub mod device;
mod events;
pub mod former;
mod grace;
mod hold;
pub mod hop;
mod hops;
mod ipsec;
pub mod ladder;
pub mod load;
mod names;
mod net;
mod netlink;
mod object;
pub mod off;
pub mod pins;
pub mod privileges;
pub mod probe;
mod refusals;
mod selftest;
pub mod service;
mod settling;
pub mod share;
pub mod slots;
mod stopping;
pub mod table;
pub mod tables;
pub mod undo;
pub mod ways;
mod world;

/// The compiled kernel programs, `None` in a proxy that was built without the toolchain for them.
#[cfg(msm_kernel_object)]
pub const OBJECT: Option<&'static [u8]> = Some(aya::include_bytes_aligned!(env!("MSM_KERNEL_OBJECT")));

/// The compiled kernel programs, `None` in a proxy that was built without the toolchain for them.
#[cfg(not(msm_kernel_object))]
pub const OBJECT: Option<&'static [u8]> = None;
