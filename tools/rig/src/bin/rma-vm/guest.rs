//! The guest's side of the channel: runs the commands that come, each in a thread of its own.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use serde_json::{Value, json};

use crate::Result;

/// The channel's name on the virtio bus.
pub(crate) const PORT: &str = "rma.vm";
/// The most characters of a command's output that are sent.
const MAX_OUTPUT: usize = 1 << 20;

/// Serves the channel until it ends.
pub(crate) fn serve() -> Result<()> {
    let port = OpenOptions::new().read(true).write(true).open(port()?)?;
    let answers = Arc::new(Mutex::new(port.try_clone()?));
    say(&answers, &json!({ "ready": true }));
    for line in BufReader::new(port).lines() {
        let Ok(question) = serde_json::from_str::<Value>(&line?) else {
            continue;
        };
        let answers = Arc::clone(&answers);
        thread::spawn(move || say(&answers, &run(&question)));
    }
    Ok(())
}

/// The device node of the channel.
fn port() -> Result<String> {
    for entry in fs::read_dir("/sys/class/virtio-ports")? {
        let path = entry?.path();
        if fs::read_to_string(path.join("name"))?.trim() == PORT {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            return Ok(format!("/dev/{name}"));
        }
    }
    Err("there is no channel".into())
}

fn run(question: &Value) -> Value {
    let command = question["sh"].as_str().unwrap_or_default();
    let seconds = question["seconds"].as_u64().unwrap_or(60).to_string();
    let output = Command::new("timeout")
        .args(["-s", "KILL", &seconds, "sh", "-c", command])
        .stdin(Stdio::null())
        .output();
    let text = |bytes: &[u8]| -> String {
        let text = String::from_utf8_lossy(bytes);
        text.chars().take(MAX_OUTPUT).collect()
    };
    match output {
        Ok(output) => json!({
            "id": question["id"], "status": output.status.code().unwrap_or(-1),
            "stdout": text(&output.stdout), "stderr": text(&output.stderr),
        }),
        Err(e) => json!({ "id": question["id"], "status": -1, "stderr": e.to_string() }),
    }
}

fn say(answers: &Mutex<File>, answer: &Value) {
    let mut port = answers.lock().unwrap_or_else(PoisonError::into_inner);
    let _ = port.write_all(format!("{answer}\n").as_bytes());
}
