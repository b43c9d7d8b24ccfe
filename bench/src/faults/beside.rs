//! Tasks beside a row, which end with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use tokio::task::JoinHandle;

/// The word for a task that it is to end.
#[derive(Clone, Debug, Default)]
pub struct Word(Arc<AtomicBool>);

impl Word {
    /// Whether it was given.
    pub fn is_given(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A task that is told to end when it is asked for its result, and when this is dropped.
#[derive(Debug)]
pub struct Beside<T> {
    word: Word,
    task: JoinHandle<T>,
}

impl<T: Send + 'static> Beside<T> {
    /// Starts it.
    pub fn start<F: Future<Output = T> + Send + 'static>(task: impl FnOnce(Word) -> F) -> Self {
        let word = Word::default();
        let task = tokio::spawn(task(word.clone()));
        Beside { word, task }
    }

    /// Tells it to end, and waits for that.
    pub async fn finish(mut self) -> Result<T> {
        self.word.0.store(true, Ordering::Relaxed);
        Ok((&mut self.task).await?)
    }
}

impl<T> Drop for Beside<T> {
    fn drop(&mut self) {
        self.word.0.store(true, Ordering::Relaxed);
    }
}
