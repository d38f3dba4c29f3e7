//! What was recorded: one file per benchmark, from which the report is made.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::report::Outcome;
use super::rounds::Plan;

/// When, where and how a benchmark ran.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Conditions {
    /// UTC, to the minute.
    pub(crate) date: String,
    pub(crate) kernel: String,
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) rounds: usize,
    pub(crate) seconds: f64,
    /// Runs beside foreign load were repeated.
    pub(crate) strict: bool,
    pub(crate) foreign: f64,
    pub(crate) steal: f64,
    /// Seconds that it took.
    pub(crate) took: f64,
}

impl Conditions {
    pub(crate) fn now(plan: &Plan) -> Result<Self> {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let cpu = read("/proc/cpuinfo");
        let model = cpu.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or("unknown");
        let date = msm_tests::process::output("date", &["-u", "+%Y-%m-%d %H:%M"])?;
        Ok(Self {
            date: date.trim().to_owned(),
            kernel: super::report::kernel(),
            cpu: model.trim_start_matches([' ', '\t', ':']).to_owned(),
            cores: cpu.lines().filter(|l| l.starts_with("processor")).count(),
            rounds: plan.rounds,
            seconds: plan.each.as_secs_f64(),
            strict: plan.strict,
            foreign: plan.foreign,
            steal: plan.steal,
            took: 0.0,
        })
    }

    /// A sentence or two above the tables.
    pub(crate) fn to_markdown(&self, id: &str) -> String {
        let quiet = if self.strict {
            format!(
                "Runs were repeated while others used more than {:.0} % of a core or the hypervisor took more than {:.0} %.",
                100.0 * self.foreign,
                100.0 * self.steal
            )
        } else {
            "**The machine was not required to be quiet.**".to_owned()
        };
        format!(
            "`cargo xtask bench kernel {id} --rounds {} --seconds {}`, {} UTC, {}, {} × {}. {quiet}",
            self.rounds, self.seconds, self.date, self.kernel, self.cores, self.cpu
        )
    }
}

fn file(folder: &Path, id: &str) -> PathBuf {
    folder.join(format!("{}.json", id.to_ascii_lowercase()))
}

/// Writes one benchmark, in place of what was recorded of it before.
pub(crate) fn store(folder: &Path, outcome: &Outcome) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let path = file(folder, &outcome.id);
    let mut text = String::new();
    write(&serde_json::to_value(outcome)?, 0, &mut text);
    text.push('\n');
    std::fs::write(&path, text).with_context(|| path.display().to_string())
}

/// What was recorded of one benchmark, or nothing.
pub(crate) fn load(folder: &Path, id: &str) -> Result<Option<Outcome>> {
    let path = file(folder, id);
    match std::fs::read(&path) {
        Ok(text) => Ok(Some(serde_json::from_slice(&text).with_context(|| path.display().to_string())?)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

/// JSON with what fits on a line on one line: a run is a line.
fn write(value: &Value, indent: usize, out: &mut String) {
    const WIDTH: usize = 320;
    let flat = value.to_string();
    let pad = " ".repeat(indent + 1);
    match value {
        Value::Array(items) if flat.len() > WIDTH => {
            out.push_str("[\n");
            for (number, item) in items.iter().enumerate() {
                out.push_str(&pad);
                write(item, indent + 1, out);
                out.push_str(if number + 1 < items.len() { ",\n" } else { "\n" });
            }
            out.push_str(&" ".repeat(indent));
            out.push(']');
        }
        Value::Object(fields) if flat.len() > WIDTH => {
            out.push_str("{\n");
            for (number, (name, field)) in fields.iter().enumerate() {
                out.push_str(&pad);
                out.push_str(&Value::from(name.as_str()).to_string());
                out.push_str(": ");
                write(field, indent + 1, out);
                out.push_str(if number + 1 < fields.len() { ",\n" } else { "\n" });
            }
            out.push_str(&" ".repeat(indent));
            out.push('}');
        }
        _ => out.push_str(&flat),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let long: Vec<Value> = (0..200).map(|n| serde_json::json!({"a": n, "b": [1.5, null]})).collect();
        let value = serde_json::json!({"all": long, "none": [], "text": "a\"b\n"});
        let mut text = String::new();
        write(&value, 0, &mut text);
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
        assert!(text.lines().count() > 200);
    }
}
