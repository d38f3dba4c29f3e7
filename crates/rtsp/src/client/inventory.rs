//! A session with a camera when a proxy hands over: the camera sees one client all the time.

use std::time::Duration;

use msm_handover::{Anchor, Malformed, Moment};
use serde::{Deserialize, Serialize};

use super::keepalive::Keepalive;
use super::{AuthFailure, Client, ClientConfig, Outstanding, Request, Step};
use crate::auth::ClientAuth;
use crate::auth::inventory::ClientAuthInventory;
use crate::message::inventory::RequestInventory;
use crate::transport::TransportSpec;

/// A [`Client`], written down. Its configuration is not; the route of the stream has it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ClientInventory {
    auth: ClientAuthInventory,
    auth_failure: Option<AuthFailureInventory>,
    cseq: u32,
    session: Option<String>,
    aggregate: String,
    keepalive: KeepaliveInventory,
    asked: Option<TransportSpec>,
    outstanding: Vec<(u32, OutstandingInventory)>,
    stray_replies: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum AuthFailureInventory {
    NoCredentials,
    NoUsableChallenge,
    BasicNotAllowed,
    Rejected,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
struct KeepaliveInventory {
    timeout: Option<Duration>,
    next: Option<Moment>,
    get_parameter: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct OutstandingInventory {
    step: StepInventory,
    request: RequestInventory,
    deadline: Moment,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StepInventory {
    Options,
    Describe,
    Setup(usize),
    Play,
    Pause,
    Keepalive,
    Teardown,
}

macro_rules! same {
    ($from:ident, $to:ident: $($name:ident $(($value:ident))?)*) => {
        impl From<$from> for $to {
            fn from(from: $from) -> Self {
                match from { $($from::$name $(($value))? => Self::$name $(($value))?,)* }
            }
        }

        impl From<$to> for $from {
            fn from(from: $to) -> Self {
                match from { $($to::$name $(($value))? => Self::$name $(($value))?,)* }
            }
        }
    };
}

same!(Step, StepInventory: Options Describe Setup(media) Play Pause Keepalive Teardown);
same!(AuthFailure, AuthFailureInventory: NoCredentials NoUsableChallenge BasicNotAllowed Rejected);

impl Client {
    /// Writes it down. Its outputs must have been taken.
    pub fn inventory(&self, at: &Anchor) -> ClientInventory {
        let outstanding = self.outstanding.iter().map(|(cseq, entry)| {
            let entry = OutstandingInventory {
                step: entry.step.into(),
                request: entry.request.inventory(),
                deadline: at.moment(entry.deadline),
            };
            (*cseq, entry)
        });
        ClientInventory {
            auth: self.auth.inventory(),
            auth_failure: Some(self.auth_failure.into()),
            cseq: self.cseq,
            session: self.session.clone(),
            aggregate: self.aggregate.clone(),
            keepalive: KeepaliveInventory {
                timeout: Some(self.keepalive.timeout),
                next: self.keepalive.next.map(|next| at.moment(next)),
                get_parameter: self.keepalive.get_parameter,
            },
            asked: self.asked.clone(),
            outstanding: outstanding.collect(),
            stray_replies: self.stray_replies,
        }
    }

    /// As it was.
    ///
    /// # Errors
    /// A challenge of a scheme that this program does not know.
    pub fn restore(inventory: ClientInventory, config: ClientConfig, at: &Anchor) -> Result<Self, Malformed> {
        let outstanding = inventory.outstanding.into_iter().map(|(cseq, entry)| {
            let entry = Outstanding {
                step: entry.step.into(),
                request: Request::restore(entry.request),
                deadline: at.instant(entry.deadline),
            };
            (cseq, entry)
        });
        let known = Keepalive::default();
        Ok(Self {
            auth: ClientAuth::restore(inventory.auth, config.credentials.clone(), config.basic)?,
            config,
            auth_failure: inventory.auth_failure.map_or(AuthFailure::NoCredentials, Into::into),
            cseq: inventory.cseq,
            session: inventory.session,
            aggregate: inventory.aggregate,
            keepalive: Keepalive {
                timeout: inventory.keepalive.timeout.unwrap_or(known.timeout),
                next: inventory.keepalive.next.map(|next| at.instant(next)),
                get_parameter: inventory.keepalive.get_parameter,
            },
            asked: inventory.asked,
            outstanding: outstanding.collect(),
            outputs: std::collections::VecDeque::new(),
            stray_replies: inventory.stray_replies,
        })
    }
}

#[cfg(test)]
mod tests;
