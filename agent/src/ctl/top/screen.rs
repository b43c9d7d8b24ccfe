//! The terminal while something is drawn on all of it: keys come one by one, and it is given back as it was.

use std::io::{Read, Write};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::sync::mpsc;

use crate::ctl::CtlError;

/// The screen of its own, without a cursor.
const OPEN: &str = "\x1b[?1049h\x1b[?25l";

/// The screen of before.
const CLOSE: &str = "\x1b[?25h\x1b[?1049l";

/// Keys that may wait.
const KEYS: usize = 16;

/// What Ctrl-C is on a terminal that does not make a signal of it.
const CONTROL_C: u8 = 3;

/// A key that was pressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// `q`, or Ctrl-C.
    Quit,
    /// Any other.
    Other,
}

/// The terminal, as long as this lives.
pub(super) struct Screen {
    before: Termios,
    keys: mpsc::Receiver<Key>,
}

impl Screen {
    /// Takes the terminal over.
    pub(super) fn open() -> Result<Self, CtlError> {
        let refused = |why: String| CtlError::Output(format!("the terminal cannot be used: {why}"));
        let before = tcgetattr(std::io::stdin()).map_err(|error| refused(error.to_string()))?;
        let mut raw = before.clone();
        raw.local_modes -= LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG;
        tcsetattr(std::io::stdin(), OptionalActions::Now, &raw)
            .map_err(|error| refused(error.to_string()))?;
        let (sender, keys) = mpsc::channel(KEYS);
        // From here on the terminal is given back, whatever happens.
        let screen = Self { before, keys };
        tokio::task::spawn_blocking(move || read_keys(&sender));
        write(OPEN)?;
        Ok(screen)
    }

    /// Columns and lines.
    pub(super) fn size(&self) -> (usize, usize) {
        let size = tcgetwinsize(std::io::stdout());
        size.map_or((80, 24), |size| {
            (
                usize::from(size.ws_col).max(20),
                usize::from(size.ws_row).max(5),
            )
        })
    }

    /// Draws the lines over what was there.
    pub(super) fn draw(&mut self, lines: &[String]) -> Result<(), CtlError> {
        write(&format!("\x1b[H{}\x1b[K\x1b[J", lines.join("\x1b[K\r\n")))
    }

    /// The next key; `None` when no more can come.
    pub(super) async fn key(&mut self) -> Option<Key> {
        self.keys.recv().await
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // Nobody can be told that one of these failed.
        let _ = write(CLOSE);
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.before);
    }
}

fn write(text: &str) -> Result<(), CtlError> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|error| CtlError::Output(error.to_string()))
}

/// Until the other side or the terminal is gone.
fn read_keys(keys: &mpsc::Sender<Key>) {
    let mut byte = [0];
    while let Ok(1) = std::io::stdin().read(&mut byte) {
        let key = match byte[0] {
            b'q' | b'Q' | CONTROL_C => Key::Quit,
            _ => Key::Other,
        };
        if keys.blocking_send(key).is_err() {
            return;
        }
    }
}
