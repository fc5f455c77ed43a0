//! The targets whose allocator tables are written to (`--redirect-allocators`).

use anyhow::anyhow;

use super::live::Live;
use super::traced::Traced;
use crate::redirect::{RedirectError, Redirection, Restored};

impl Live<'_> {
    /// Writes the pointers: the probes that they lead to are in place.
    ///
    /// # Errors
    /// When one cannot be written. Then none is.
    pub fn redirect(&mut self, redirection: Redirection) -> Result<(), RedirectError> {
        redirection.write()?;
        self.redirection = Some(redirection);
        for traced in &mut self.traced {
            traced.is_redirected = true;
        }
        self.note(
            "CPython's tables of allocators are redirected: 8 pointers of each target were written to, and are \
             restored at the end"
                .to_owned(),
        );
        Ok(())
    }

    /// Restores the pointers, while what they lead to is still probed.
    pub(super) fn restore_redirected(&mut self) {
        let Some(redirection) = self.redirection.take() else { return };
        let Restored { restored, foreign, failed } = redirection.restore();
        log::info!("{restored} pointers of redirected allocators are restored");
        if foreign > 0 {
            self.note(format!(
                "{foreign} redirected pointers were changed by the program itself, and left as they are"
            ));
        }
        if failed > 0 {
            self.fail(anyhow!(
                "{failed} redirected pointers could not be restored: the program goes on as it is"
            ));
        }
    }
}

impl Traced {
    /// The process runs another program, whose tables are as they were made.
    pub(super) fn end_redirection(&mut self) -> Option<String> {
        let was_redirected = std::mem::take(&mut self.is_redirected);
        was_redirected.then(|| {
            format!(
                "process {} called exec: the allocators of its new program are not redirected",
                self.target.process.tgid
            )
        })
    }
}
