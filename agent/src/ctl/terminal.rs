//! What the operator sees and is asked. Colours and questions only on a terminal.

use std::io::{BufRead, IsTerminal, Write};

use super::CtlError;

/// Where output goes and answers come from.
pub struct Terminal {
    is_interactive: bool,
    has_colours: bool,
}

impl Terminal {
    /// This process's.
    pub fn new(no_color: bool) -> Self {
        Self {
            is_interactive: std::io::stdin().is_terminal(),
            has_colours: !no_color && std::io::stdout().is_terminal(),
        }
    }

    /// Prints text as it is.
    pub fn print(&self, text: &str) -> Result<(), CtlError> {
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes())
            .and_then(|()| out.flush())
            .map_err(|error| CtlError::Output(error.to_string()))
    }

    /// Prints a line.
    pub fn line(&self, text: &str) -> Result<(), CtlError> {
        self.print(&format!("{text}\n"))
    }

    /// Prints a line beside the output.
    pub fn warn(&self, text: &str) {
        // Nobody can be told that this failed.
        let _ = writeln!(std::io::stderr().lock(), "{text}");
    }

    /// Prints a line that tells of success.
    pub fn success(&self, text: &str) -> Result<(), CtlError> {
        match self.has_colours {
            true => self.line(&format!("\x1b[32m{text}\x1b[0m")),
            false => self.line(text),
        }
    }

    /// Asks for a text; an empty answer is the default.
    pub fn ask(&self, question: &str, default: &str) -> Result<String, CtlError> {
        let shown = match default {
            "" => format!("{question}: "),
            default => format!("{question} [{default}]: "),
        };
        let answer = self.read(&shown)?;
        Ok(match answer.as_str() {
            "" => default.to_owned(),
            answer => answer.to_owned(),
        })
    }

    /// Asks for words that are to be typed exactly. They may also come through a pipe: whoever writes them
    /// into one means them.
    ///
    /// # Errors
    /// [`CtlError::Aborted`] where no more can be read.
    pub fn demand(&self, question: &str) -> Result<String, CtlError> {
        self.print(&format!("{question}: "))?;
        let mut answer = String::new();
        let read = std::io::stdin().lock().read_line(&mut answer);
        match read.map_err(|error| CtlError::Output(error.to_string()))? {
            0 => Err(CtlError::Aborted),
            _ => Ok(answer.trim_end_matches(['\r', '\n']).to_owned()),
        }
    }

    /// Asks for a yes.
    ///
    /// # Errors
    /// [`CtlError::Aborted`] on anything else, and where nobody can be asked.
    pub fn confirm(&self, question: &str) -> Result<(), CtlError> {
        let answer = self.read(&format!("{question} [y/N]: "))?;
        match answer.to_ascii_lowercase().as_str() {
            "y" | "yes" => Ok(()),
            _ => Err(CtlError::Aborted),
        }
    }

    fn read(&self, question: &str) -> Result<String, CtlError> {
        if !self.is_interactive {
            return Err(CtlError::NobodyToAsk(question.trim().to_owned()));
        }
        self.print(question)?;
        let mut answer = String::new();
        std::io::stdin()
            .lock()
            .read_line(&mut answer)
            .map_err(|error| CtlError::Output(error.to_string()))?;
        Ok(answer.trim().to_owned())
    }

    /// Whether progress may be drawn over itself.
    pub fn is_drawn_on(&self) -> bool {
        self.has_colours
    }
}
