//! The admin listener: `/metrics`, `/livez`, `/readyz`, `/startupz`, and the owner's JSON documents.
//!
//! Answers come from the loop that owns the state, through a bounded channel: a probe that is answered
//! has measured that loop. Handlers hold nothing themselves.

use std::time::Duration;

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::sync::{mpsc, oneshot};

use crate::metrics::{OPENMETRICS, TEXT, to_text};

/// Longest time a question may wait for its answer.
pub const DEADLINE: Duration = Duration::from_secs(2);

/// Questions that may wait at once; more are answered `503`.
pub const QUEUE: usize = 32;

/// A question to the loop that owns the state.
#[derive(Debug)]
pub enum Ask {
    /// The metrics in OpenMetrics text.
    Metrics(oneshot::Sender<String>),
    /// Whether every loop of the packet path turns.
    Live(oneshot::Sender<Health>),
    /// Whether service can be given.
    Ready(oneshot::Sender<Health>),
    /// One of the owner's documents, by its path, as JSON text.
    Document(&'static str, oneshot::Sender<String>),
}

/// Results of checks, one line each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    checks: Vec<(String, Result<String, String>)>,
}

impl Health {
    /// No checks yet: healthy.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a check with what it found.
    pub fn with(mut self, name: impl Into<String>, found: Result<String, String>) -> Self {
        self.checks.push((name.into(), found));
        self
    }

    /// Whether every check passed.
    pub fn is_ok(&self) -> bool {
        self.checks.iter().all(|(_, found)| found.is_ok())
    }

    fn response(&self, verbose: bool) -> Response {
        use std::fmt::Write as _;
        let mut body = String::new();
        for (name, found) in &self.checks {
            let _ = match found {
                Ok(text) if verbose => writeln!(body, "[+] {name}: {text}"),
                Ok(_) => Ok(()),
                Err(text) => writeln!(body, "[-] {name}: {text}"),
            };
        }
        let (status, word) =
            if self.is_ok() { (StatusCode::OK, "ok") } else { (StatusCode::SERVICE_UNAVAILABLE, "failed") };
        body.push_str(word);
        body.push('\n');
        (status, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response()
    }
}

/// The routes of the admin listener. `documents`: paths that are answered by [`Ask::Document`].
pub fn router(asks: mpsc::Sender<Ask>, documents: &[&'static str]) -> Router {
    let mut router = Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(|state, query| health(state, query, Ask::Live)))
        .route("/readyz", get(|state, query| health(state, query, Ask::Ready)))
        .route("/startupz", get(|state, query| health(state, query, Ask::Ready)));
    for path in documents.iter().copied() {
        router = router.route(path, get(move |state| document(state, path)));
    }
    router.with_state(asks)
}

async fn ask<T>(asks: &mpsc::Sender<Ask>, make: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Option<T> {
    let (tx, rx) = oneshot::channel();
    asks.try_send(make(tx)).ok()?;
    tokio::time::timeout(DEADLINE, rx).await.ok()?.ok()
}

fn unavailable() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, "the control loop did not answer in time\n").into_response()
}

async fn metrics(State(asks): State<mpsc::Sender<Ask>>, headers: HeaderMap) -> Response {
    let Some(text) = ask(&asks, Ask::Metrics).await else { return unavailable() };
    let open = headers
        .get(header::ACCEPT)
        .and_then(|v| v.to_str().ok())
        .is_some_and(|v| v.contains("application/openmetrics-text"));
    if open {
        ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response()
    } else {
        ([(header::CONTENT_TYPE, TEXT)], to_text(&text)).into_response()
    }
}

async fn health(
    State(asks): State<mpsc::Sender<Ask>>,
    RawQuery(query): RawQuery,
    make: fn(oneshot::Sender<Health>) -> Ask,
) -> Response {
    let verbose = query.is_some_and(|q| q.split('&').any(|part| part == "verbose" || part == "verbose=1"));
    match ask(&asks, make).await {
        Some(found) => found.response(verbose),
        None => unavailable(),
    }
}

async fn document(State(asks): State<mpsc::Sender<Ask>>, path: &'static str) -> Response {
    match ask(&asks, |answer| Ask::Document(path, answer)).await {
        Some(json) => ([(header::CONTENT_TYPE, "application/json")], json).into_response(),
        None => unavailable(),
    }
}
