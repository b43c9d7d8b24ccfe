//! What the operator sees and is asked. Colours, and lines drawn over themselves, only on a terminal.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::io::{BufRead, IsTerminal, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use trunkline_shared::service::clock;

use super::CtlError;

/// Nothing is said of what takes less.
const QUIET: Duration = Duration::from_secs(2);

/// How often a line of progress is drawn over itself.
const DRAWN_EVERY: Duration = Duration::from_millis(500);

/// How often progress is told where nothing can be drawn over.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// Where output goes and answers come from. Clones share it.
#[derive(Clone)]
pub struct Terminal {
    ends: Arc<Ends>,
    /// What is printed goes beside the output.
    is_beside: bool,
}

struct Ends {
    is_interactive: bool,
    has_colours: bool,
    is_drawn_on: bool,
    /// What would be true if the command were interrupted now.
    under_way: Mutex<Option<String>>,
    /// In place of this process's streams.
    script: Option<Mutex<Script>>,
}

/// What was said, and what will be answered.
#[derive(Default)]
struct Script {
    said: String,
    answers: VecDeque<String>,
}

/// What is waited for, as a person reads it; changed while it is waited.
pub type Label = RefCell<String>;

impl Terminal {
    /// This process's.
    pub fn new(no_color: bool) -> Self {
        let is_drawn_on = std::io::stdout().is_terminal() && std::io::stderr().is_terminal();
        Self::of(Ends {
            is_interactive: std::io::stdin().is_terminal(),
            has_colours: !no_color && std::io::stdout().is_terminal(),
            is_drawn_on,
            under_way: Mutex::default(),
            script: None,
        })
    }

    fn of(ends: Ends) -> Self {
        Self {
            ends: Arc::new(ends),
            is_beside: false,
        }
    }

    /// The same, whose lines and questions go beside the output, which is for a machine then.
    pub fn beside(&self) -> Self {
        Self {
            ends: self.ends.clone(),
            is_beside: true,
        }
    }

    /// One without a person: `answers` are typed in order, and what is said is kept.
    pub fn scripted(answers: &[&str]) -> Self {
        let answers = answers.iter().map(|answer| (*answer).to_owned());
        Self::of(Ends {
            is_interactive: false,
            has_colours: false,
            is_drawn_on: false,
            under_way: Mutex::default(),
            script: Some(Mutex::new(Script {
                answers: answers.collect(),
                ..Script::default()
            })),
        })
    }

    /// What was said on a scripted terminal.
    pub fn said(&self) -> String {
        self.script()
            .map_or_else(String::new, |script| script.said.clone())
    }

    fn script(&self) -> Option<MutexGuard<'_, Script>> {
        let script = self.ends.script.as_ref()?;
        Some(script.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Prints text as it is.
    ///
    /// # Errors
    /// [`CtlError::Output`]
    pub fn print(&self, text: &str) -> Result<(), CtlError> {
        if let Some(mut script) = self.script() {
            script.said.push_str(text);
            return Ok(());
        }
        let write =
            |mut out: Box<dyn Write>| out.write_all(text.as_bytes()).and_then(|()| out.flush());
        let written = match self.is_beside {
            true => write(Box::new(std::io::stderr().lock())),
            false => write(Box::new(std::io::stdout().lock())),
        };
        written.map_err(|error| CtlError::Output(error.to_string()))
    }

    /// Prints a line.
    ///
    /// # Errors
    /// [`CtlError::Output`]
    pub fn line(&self, text: &str) -> Result<(), CtlError> {
        self.print(&format!("{text}\n"))
    }

    /// Prints a line beside the output.
    pub fn warn(&self, text: &str) {
        match self.script() {
            Some(mut script) => script.said.push_str(&format!("{text}\n")),
            // Nobody can be told that this failed.
            None => drop(writeln!(std::io::stderr().lock(), "{text}")),
        }
    }

    /// Prints a line that tells of success.
    ///
    /// # Errors
    /// [`CtlError::Output`]
    pub fn success(&self, text: &str) -> Result<(), CtlError> {
        self.line(&self.coloured(text, "32"))
    }

    /// Text in a colour (its number in ANSI), where colours are seen.
    pub fn coloured(&self, text: &str, colour: &str) -> String {
        match self.ends.has_colours && !self.is_beside {
            true => format!("\x1b[{colour}m{text}\x1b[0m"),
            false => text.to_owned(),
        }
    }

    /// Asks for a text; an empty answer is the default, and without one it is asked again.
    ///
    /// # Errors
    /// [`CtlError::NobodyToAsk`] or [`CtlError::Aborted`] where no more can be read.
    pub async fn ask(&self, question: &str, default: Option<&str>) -> Result<String, CtlError> {
        let shown = match default {
            None => format!("{question}: "),
            Some(default) => format!("{question} [{default}]: "),
        };
        loop {
            let answer = self.read(&shown).await?;
            match (answer.trim(), default) {
                ("", Some(default)) => return Ok(default.to_owned()),
                ("", None) => {}
                (answer, _) => return Ok(answer.to_owned()),
            }
        }
    }

    /// Asks for words that nobody is to see.
    ///
    /// # Errors
    /// [`CtlError::NobodyToAsk`] or [`CtlError::Aborted`] where no more can be read.
    pub async fn secret(&self, question: &str) -> Result<String, CtlError> {
        let _unseen = self.ends.is_interactive.then(Unseen::begin).flatten();
        let secret = self.read(&format!("{question}: ")).await;
        if self.ends.is_interactive {
            self.line("")?;
        }
        secret
    }

    /// Asks for words that are to be typed exactly.
    ///
    /// # Errors
    /// [`CtlError::NobodyToAsk`] or [`CtlError::Aborted`] where no more can be read.
    pub async fn demand(&self, question: &str) -> Result<String, CtlError> {
        self.read(&format!("{question}: ")).await
    }

    /// Asks for a yes; `refused` is what has then not happened, such as `Aborted restart`.
    ///
    /// # Errors
    /// [`CtlError::Aborted`] on a no, and where no more can be read.
    pub async fn confirm(&self, question: &str, refused: &str) -> Result<(), CtlError> {
        match self.agrees(question).await? {
            true => Ok(()),
            false => Err(CtlError::Aborted(refused.to_owned())),
        }
    }

    /// Asks yes or no until one of them is answered; nothing means no.
    ///
    /// # Errors
    /// [`CtlError::NobodyToAsk`] or [`CtlError::Aborted`] where no more can be read.
    pub async fn agrees(&self, question: &str) -> Result<bool, CtlError> {
        loop {
            let answer = self.read(&format!("{question} [y/N]: ")).await?;
            match answer.trim().to_ascii_lowercase().as_str() {
                "y" | "yes" => return Ok(true),
                "" | "n" | "no" => return Ok(false),
                _ => self.line("Error: invalid input")?,
            }
        }
    }

    /// One line of input, without its end. It may come through a pipe, as with patronictl: whoever writes an
    /// answer into one means it.
    async fn read(&self, question: &str) -> Result<String, CtlError> {
        self.print(question)?;
        if let Some(mut script) = self.script() {
            let answer = script.answers.pop_front();
            let typed = answer.as_deref().unwrap_or_default();
            script.said.push_str(&format!("{typed}\n"));
            return answer.ok_or_else(|| CtlError::NobodyToAsk(question.trim().to_owned()));
        }
        // Beside the event loop, which has to see an interrupt while the operator thinks.
        let line = tokio::task::spawn_blocking(|| {
            let mut line = String::new();
            let read = std::io::stdin().lock().read_line(&mut line);
            read.map(|bytes| (bytes > 0).then_some(line))
        })
        .await
        .map_err(std::io::Error::other)
        .flatten()
        .map_err(|error| CtlError::Output(format!("the answer cannot be read: {error}")))?;
        match line {
            Some(line) => Ok(line.trim_end_matches(['\r', '\n']).to_owned()),
            None => {
                self.line("")?;
                Err(match self.ends.is_interactive {
                    true => CtlError::Aborted("Aborted".to_owned()),
                    false => CtlError::NobodyToAsk(question.trim().to_owned()),
                })
            }
        }
    }

    /// Whether a person can be asked.
    pub fn is_interactive(&self) -> bool {
        self.ends.is_interactive
    }

    /// Whether output may be drawn over.
    pub fn is_drawn_on(&self) -> bool {
        self.ends.is_drawn_on
    }

    /// Does some work and, where it takes long, tells every now and then what is waited for and how long.
    pub async fn waiting<T>(&self, label: &Label, work: impl Future<Output = T>) -> T {
        let started = clock::now();
        let mut work = std::pin::pin!(work);
        let every = match self.ends.is_drawn_on {
            true => DRAWN_EVERY,
            false => TOLD_EVERY,
        };
        let mut pause = QUIET;
        let mut is_drawn = false;
        loop {
            tokio::select! {
                done = &mut work => {
                    if is_drawn {
                        draw("");
                    }
                    return done;
                }
                () = tokio::time::sleep(pause) => {}
            }
            pause = every;
            let took = clock::now().since(started).as_secs_f64();
            let line = format!("{took:>6.1} s {}", label.borrow());
            match self.ends.is_drawn_on {
                true => {
                    is_drawn = true;
                    draw(&line);
                }
                false => self.warn(&line),
            }
        }
    }

    /// From here on an interrupt finds this true, such as `the switchover was asked for and goes on`.
    pub fn goes_on(&self, what: &str) {
        *self.under_way() = Some(what.to_owned());
    }

    /// What is true when the command is interrupted now.
    pub fn interrupted(&self) -> String {
        match self.under_way().take() {
            Some(what) => format!("Interrupted: {what}"),
            None => "Interrupted; nothing was changed".to_owned(),
        }
    }

    fn under_way(&self) -> MutexGuard<'_, Option<String>> {
        let under_way = self.ends.under_way.lock();
        under_way.unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is typed is not shown, as long as this lives.
struct Unseen(Termios);

impl Unseen {
    fn begin() -> Option<Self> {
        let before = tcgetattr(std::io::stdin()).ok()?;
        let mut unseen = before.clone();
        unseen.local_modes -= LocalModes::ECHO;
        tcsetattr(std::io::stdin(), OptionalActions::Now, &unseen).ok()?;
        Some(Self(before))
    }
}

impl Drop for Unseen {
    fn drop(&mut self) {
        // Nobody can be told that this failed.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
    }
}

/// Draws a line over the one before.
fn draw(line: &str) {
    // Nobody can be told that this failed.
    let _ = write!(std::io::stderr().lock(), "\r\x1b[K{line}");
}
