//! A real pre-fork server: gunicorn, with an application that leaks by plan (`targets/leaky_app.py`).

use super::deadline::{open_process, read_line, signal, wait_exit, wait_readable};
use super::source_path;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// A running gunicorn. Stopped when dropped.
pub struct Server {
    master: Child,
    port: u16,
}

impl Server {
    /// Starts it with `workers` workers under Debian's Python, on a free port of the loopback interface, and
    /// waits until each worker has answered.
    pub fn start(workers: usize) -> Self {
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-m", "gunicorn", "--bind", "127.0.0.1:0"]);
        command.args(["--workers", &workers.to_string(), "--worker-tmp-dir", "/dev/shm", "leaky_app"]);
        let app = source_path("leaky_app.py").parent().expect("a file has a directory").to_owned();
        let python_path = std::env::join_paths([packages(), app]).expect("paths without colons");
        command.env("PYTHONPATH", python_path).env("PYTHONDONTWRITEBYTECODE", "1").stderr(Stdio::piped());
        let mut master = command.stdin(Stdio::null()).spawn().expect("start gunicorn");
        let mut log = master.stderr.take().expect("standard error is a pipe");
        let port = loop {
            let line = read_line(&mut log, LIMIT).expect("gunicorn says where it listens");
            if let Some((_, address)) = line.split_once("Listening at: http://127.0.0.1:") {
                break address.split(' ').next().and_then(|port| port.parse().ok()).expect("a port");
            }
        };
        // Nobody reads the rest; a full pipe would stop the server.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        let server = Self { master, port };
        server.serve(workers, 1);
        server
    }

    /// The master's process id.
    pub fn pid(&self) -> u32 {
        self.master.id()
    }

    /// Sends one request; the process id of the worker that answered.
    pub fn request(&self) -> u32 {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).expect("connect to gunicorn");
        stream.set_read_timeout(Some(LIMIT)).expect("set a timeout");
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").expect("send a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("read an answer");
        assert!(answer.starts_with("HTTP/1.0 200") || answer.starts_with("HTTP/1.1 200"), "{answer}");
        answer.rsplit("\r\n").next().and_then(|pid| pid.parse().ok()).expect("the answer is a process id")
    }

    /// Sends requests until `workers` workers have answered at least `each` of them; how many each answered.
    pub fn serve(&self, workers: usize, each: u64) -> BTreeMap<u32, u64> {
        let mut served: BTreeMap<u32, u64> = BTreeMap::new();
        for _ in 0..10_000 {
            *served.entry(self.request()).or_default() += 1;
            if served.len() >= workers && served.values().all(|count| *count >= each) {
                return served;
            }
        }
        panic!("of {workers} workers some did not answer: {served:?}");
    }

    /// Ends a worker, which the master replaces by a new one, and waits until it is gone. No request is under
    /// way meanwhile that the worker could take with it.
    pub fn replace(&self, worker: u32) {
        let worker = i32::try_from(worker).expect("process ids fit an i32");
        let process = open_process(worker);
        // SAFETY: kill takes two integers; the worker lives: it has just answered.
        let result = unsafe { libc::kill(worker, libc::SIGTERM) };
        assert_eq!(result, 0, "end worker {worker}");
        assert!(wait_readable(process.as_fd(), LIMIT), "worker {worker} ends");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(None) = self.master.try_wait() {
            signal(&self.master, libc::SIGTERM);
            if wait_exit(&mut self.master, LIMIT).is_none() {
                let _ = self.master.kill();
                let _ = self.master.wait();
            }
        }
    }
}

/// Where `cargo xtask test` has put gunicorn.
fn packages() -> PathBuf {
    let path = std::env::var_os("MEMTRACE_TEST_PYTHON_PACKAGES")
        .expect("MEMTRACE_TEST_PYTHON_PACKAGES names a directory with gunicorn: run `cargo xtask test`");
    PathBuf::from(path)
}
