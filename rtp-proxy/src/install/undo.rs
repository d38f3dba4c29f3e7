//! What an operation is waited for, and how one that failed is taken back.
//!
//! A failure may come late, after other operations on the same row or leg: only what still is as the failed
//! one left it is touched.

use msm_control_plane::event::OpError;
use msm_graph::{InputRow, LegSpec, StreamId};
use tokio::sync::oneshot;

use super::{ACK, State, udp_peer};
use crate::user::worker::{Command, Step};

/// What is still to be waited for.
#[derive(Debug, Default)]
pub(super) struct Pending {
    pub(super) applied: Vec<oneshot::Receiver<Result<(), OpError>>>,
    pub(super) moved: Vec<oneshot::Receiver<Result<(), OpError>>>,
}

impl Pending {
    /// Waits for everything, whatever fails first.
    pub(super) async fn settle(self) -> Result<(), OpError> {
        let mut failure = None;
        for ack in self.moved.into_iter().chain(self.applied) {
            let result = match tokio::time::timeout(ACK, ack).await {
                Ok(Ok(result)) => result,
                Ok(Err(_)) => Err(OpError::NotFound("the connection ended meanwhile".to_owned())),
                Err(_) => Err(OpError::Io("no acknowledgement in time".to_owned())),
            };
            failure = failure.or(result.err());
        }
        failure.map_or(Ok(()), Err)
    }
}

/// What a row operation has opened.
#[derive(Debug, Default)]
pub(super) struct Opened {
    pub(super) stream: bool,
    pub(super) inputs: Vec<InputRow>,
}

impl State {
    /// After a failure: takes back what the operation opened, as far as a later one has not replaced it.
    pub(super) fn take_back_row(&mut self, stream: StreamId, opened: Opened) {
        let Some(known) = self.streams.get_mut(&stream) else { return };
        let worker = known.worker;
        let mut steps = Vec::new();
        let mut released = Vec::new();
        for input in opened.inputs {
            let Some(index) = known.row.inputs.iter().position(|other| *other == input) else { continue };
            known.row.inputs.remove(index);
            let pair = known.pairs.remove(&input.track);
            released.extend(pair.map(|pair| (pair, udp_peer(&input))));
            steps.push(Step::CloseInput { stream, track: input.track });
        }
        if opened.stream {
            self.streams.remove(&stream);
            self.legs.retain(|_, spec| spec.stream != stream);
            steps.push(Step::CloseStream(stream));
        }
        self.release_all(released);
        self.give_back(worker, steps);
    }

    /// After a failure: restores what the leg was, unless a later operation has changed it again.
    pub(super) fn take_back_leg(
        &mut self,
        worker: usize,
        spec: &LegSpec,
        before: Option<LegSpec>,
        undo: Vec<Step>,
    ) {
        if self.legs.get(&spec.leg) != Some(spec) {
            return;
        }
        match before {
            Some(before) => self.legs.insert(spec.leg, before),
            None => self.legs.remove(&spec.leg),
        };
        self.give_back(worker, undo);
    }

    /// Queues what takes a failed operation back. Each step stands alone: one that fails keeps none from
    /// being done.
    pub(super) fn give_back(&self, worker: usize, steps: Vec<Step>) {
        for step in steps {
            let (answer, _) = oneshot::channel();
            self.deliver(worker, Command::Apply { steps: vec![step], answer });
        }
    }
}
