//! redis-server under redis-benchmark, with a leak of its own by preload (`tests/targets/leak_preload.c`).

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::super::started::Started;
use super::super::targets::build_dir;
use super::{Books, Busy, Planted};
use crate::process::{self, in_path};
use crate::workspace;

/// The longest that the server may take to start, to answer and to end.
const LIMIT: Duration = Duration::from_secs(20);

/// The function that leaks, and the bytes of each block.
const FUNCTION: &str = "leak_one";
const BLOCK_BYTES: u64 = 1024;

/// The server under load.
pub struct Server {
    // Ends before the server does.
    load: Started,
    server: Started,
    port: u16,
    books: PathBuf,
    started: Instant,
    planted: Planted,
}

impl Server {
    /// Starts it on a free port of the loopback interface, and its load. Fails where it is not installed.
    pub fn start() -> Result<Self> {
        for program in ["redis-server", "redis-benchmark"] {
            if !in_path(program) {
                bail!("not installed: {program}; `cargo xtask setup` installs it");
            }
        }
        let dir = build_dir();
        let (preload, books) = (dir.join("leak_preload.so"), dir.join("leak_books"));
        let mut compiler = Command::new("cc");
        compiler.args(["-O2", "-g", "-shared", "-fPIC", "-pthread", "-o"]).arg(&preload);
        process::run(compiler.arg(workspace::root().join("tests/targets/leak_preload.c")))?;

        // Free a moment ago; another program may have taken it meanwhile, and then the server says so.
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("look for a free port")?;
        let port = free.local_addr().context("look for a free port")?.port();
        drop(free);
        let mut command = Command::new("redis-server");
        command.env("LD_PRELOAD", &preload).env("LEAK_BOOKS", &books).current_dir(&dir);
        command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--io-threads", "4"]);
        command.args(["--save", "", "--appendonly", "no", "--daemonize", "no"]);
        let mut server = Started::start(&mut command, &dir.join("redis.stderr"))?;
        while !server
            .read_line(LIMIT)?
            .with_context(|| server.failure("is not ready in time"))?
            .contains("Ready to accept")
        {}
        // All of its keys at first, so that the data grows no more.
        let benchmark = |arguments: &str| {
            // What it says would go into a pipe that nobody reads.
            let line =
                format!("exec redis-benchmark -h 127.0.0.1 -p {port} -r 100000 -q {arguments} >/dev/null");
            Started::start(Command::new("sh").args(["-c", &line]), &dir.join("redis-benchmark.stderr"))
        };
        benchmark("-t set -n 500000 -P 100")?.expect_success(LIMIT)?;
        // The threads of the server wait for requests by spinning. Where cores are few it spends its time so, unless
        // several requests come at once. Both kinds of request take turns of half a second.
        let load = benchmark("-t set,get -c 50 -n 20000 -P 16 -l")?;
        let planted = Planted::Function(FUNCTION);
        Ok(Self { load, server, port, books, started: Instant::now(), planted })
    }

    /// A section of the server's own figures.
    fn info(&self, section: &str) -> Result<String> {
        let asked = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
            stream.set_read_timeout(Some(LIMIT))?;
            stream.write_all(format!("INFO {section}\r\n").as_bytes())?;
            let mut answer = BufReader::new(stream);
            let mut length = String::new();
            answer.read_line(&mut length)?;
            let length = length.trim_start_matches('$').trim().parse().map_err(std::io::Error::other)?;
            let mut text = vec![0; length];
            answer.read_exact(&mut text)?;
            Ok(String::from_utf8_lossy(&text).into_owned())
        };
        asked().with_context(|| self.server.failure("does not say how it is"))
    }

    /// Ends the load and then the server.
    pub fn stop(mut self) -> Result<()> {
        self.load.interrupt()?;
        self.load.wait(LIMIT)?;
        self.server.interrupt()?;
        self.server.read_to_end(LIMIT)?;
        self.server.expect_success(LIMIT)?;
        fs::remove_file(&self.books).with_context(|| format!("remove {}", self.books.display()))
    }
}

impl Busy for Server {
    fn pid(&self) -> u32 {
        self.server.pid()
    }

    fn books(&mut self) -> Result<Books> {
        let requests =
            stat(&self.info("stats")?, "total_commands_processed").context("redis-server counts nothing")?;
        let ns = u64::try_from(self.started.elapsed().as_nanos()).context("so long a run")?;
        let leaked = fs::read(&self.books).with_context(|| format!("read {}", self.books.display()))?;
        let leaked = leaked.try_into().map(u64::from_ne_bytes);
        let Ok(leaked) = leaked else { bail!("{} is no number", self.books.display()) };
        Ok(Books { requests, leaked_bytes: leaked * BLOCK_BYTES, list_bytes: 0, ns })
    }

    fn planted(&self) -> &Planted {
        &self.planted
    }
}

/// A figure: `name:12`.
fn stat(info: &str, name: &str) -> Option<u64> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_from_the_servers_words() {
        let info = "# Stats\r\ntotal_connections_received:5\r\ntotal_commands_processed:1200\r\n";
        assert_eq!(stat(info, "total_commands_processed"), Some(1200));
        assert_eq!(stat(info, "total_commands"), None);
    }
}
