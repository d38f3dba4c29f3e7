//! Whole processes on the user path: the proxy with probes and real programs around it, over loopback.
//!
//! Every address of 127.0.0.0/8 is a peer of its own, so nothing here needs a privilege. The files `kernel_*`
//! need one: they load the kernel programs and have namespaces of their own.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod addresses;
mod families;
mod fast_path;
mod feed;
mod healthy;
mod hostile_connections;
mod hostile_flood;
mod hostile_media;
mod hostile_sessions;
mod kernel_batching;
mod kernel_crowded;
mod kernel_endurance;
mod kernel_guests;
mod kernel_house;
mod kernel_interfaces;
mod kernel_isolation;
mod kernel_joins;
mod kernel_kill;
mod kernel_ladder;
mod kernel_left;
mod kernel_moves;
mod kernel_pauses;
mod kernel_restart;
mod kernel_return;
mod kernel_scale;
mod kernel_scene;
mod kernel_selftest;
mod kernel_sources;
mod kernel_strangers;
mod kernel_unprivileged;
mod kernel_versions;
mod lip_sync;
mod load;
mod players_table;
mod record;
mod reports;
mod restart;
mod return_after_kill;
mod splice;
mod upgrade;
mod upgrade_table;
