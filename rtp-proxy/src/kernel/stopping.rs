//! The end of a thread that has other things to do.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

/// How soon it is looked again.
const LOOK: Duration = Duration::from_millis(2);

/// Tells a thread its last word, however full its queue is, and waits for its end.
///
/// Returns whether it has ended within `patience`.
pub(super) fn end<T>(queue: &mpsc::Sender<T>, word: T, thread: &JoinHandle<()>, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    let mut word = Some(word);
    while !thread.is_finished() {
        // Whoever has closed the queue is about to end.
        if let Some(Err(TrySendError::Full(back))) = word.take().map(|word| queue.try_send(word)) {
            word = Some(back);
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(LOOK);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A thread that begins to read its queue when it is let, and ends with the first 7.
    fn reader(room: usize) -> (mpsc::Sender<u8>, std::sync::mpsc::Sender<()>, JoinHandle<()>) {
        let (queue, mut words) = mpsc::channel(room);
        let (go, may) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            may.recv().ok();
            while words.blocking_recv().is_some_and(|word| word != 7) {}
        });
        (queue, go, thread)
    }

    #[test]
    fn the_last_word_arrives_although_the_queue_was_full() {
        let (queue, go, thread) = reader(2);
        queue.try_send(1).unwrap();
        queue.try_send(2).unwrap();
        let late = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            go.send(()).unwrap();
        });
        assert!(end(&queue, 7, &thread, Duration::from_secs(20)));
        late.join().unwrap();
    }

    #[test]
    fn a_thread_that_does_not_end_is_told_of() {
        let (queue, go, thread) = reader(1);
        queue.try_send(1).unwrap();
        assert!(!end(&queue, 7, &thread, Duration::from_millis(20)));
        drop(go);
    }
}
