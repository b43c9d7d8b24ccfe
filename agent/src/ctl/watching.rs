//! Printing something again and again.

use std::time::Duration;

use super::CtlError;
use super::arguments::Watch;
use super::terminal::Terminal;

/// How often `-W` prints.
const USUAL: Duration = Duration::from_secs(2);

/// The shortest time between two.
const SHORTEST: Duration = Duration::from_millis(100);

impl Watch {
    /// How often; `None` is once.
    ///
    /// # Errors
    /// [`CtlError::Usage`] for what is no time.
    pub fn interval(&self) -> Result<Option<Duration>, CtlError> {
        match self.every {
            // As with patronictl, 0 is the same as nothing.
            Some(0.0) | None => Ok(self.every_2_seconds.then_some(USUAL)),
            Some(seconds) => Duration::try_from_secs_f64(seconds)
                .map(|every| Some(every.max(SHORTEST)))
                .map_err(|_| CtlError::Usage(format!("-w {seconds}: seconds above 0 are needed"))),
        }
    }
}

/// Shows something once, or for ever where that is asked for; on a terminal over what was shown before.
///
/// # Errors
/// The first of `show`.
pub(super) async fn watching(
    terminal: &Terminal,
    every: Option<Duration>,
    mut show: impl AsyncFnMut() -> Result<(), CtlError>,
) -> Result<(), CtlError> {
    loop {
        if every.is_some() && terminal.is_drawn_on() {
            terminal.print("\x1b[H\x1b[2J")?;
        }
        show().await?;
        match every {
            Some(every) => tokio::time::sleep(every).await,
            None => return Ok(()),
        }
    }
}
