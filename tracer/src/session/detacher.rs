//! Taking links away beside the trace: each takes the kernel up to a tenth of a second.

use std::any::Any;
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};

type Links = Box<dyn Any + Send>;

/// A thread that drops what it is given, in order.
#[derive(Default)]
pub struct Detacher {
    thread: Option<(Sender<Links>, JoinHandle<()>)>,
}

impl Detacher {
    /// Drops `links` soon. Without a thread, at once.
    pub fn detach(&mut self, links: impl Any + Send) {
        if self.thread.is_none() {
            let (sender, receiver) = channel::<Links>();
            let body = move || receiver.into_iter().for_each(drop);
            let spawned = thread::Builder::new().name("memtrace-detach".to_owned()).spawn(body);
            self.thread = spawned.map(|handle| (sender, handle)).ok();
        }
        if let Some((sender, _)) = &self.thread {
            // What cannot be sent is dropped here.
            let _ = sender.send(Box::new(links));
        }
    }

    /// Waits until everything is dropped.
    pub fn finish(&mut self) {
        if let Some((sender, thread)) = self.thread.take() {
            drop(sender);
            let _ = thread.join();
        }
    }
}
