//! The whole machine on virtual time, with a packet path and a camera that answer as real ones do.

mod chaos;
mod handover;
mod hostile;
mod play;
mod publish;
mod restart;
mod world;
