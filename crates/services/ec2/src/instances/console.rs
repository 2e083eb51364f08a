//! `GetConsoleOutput` and `GetConsoleScreenshot`.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use haar_api::{Context, Error};
use haar_records::ec2::{Instance, InstanceState};

use crate::error::{Result, unsupported};
use crate::handlers::{Handlers, Screen};
use crate::{ids, model};

/// `GetConsoleOutput`. What is answered is always the latest output, which `Latest` asks for.
pub async fn get_console_output(
    handlers: &Handlers,
    ctx: &Context,
    input: model::GetConsoleOutputRequest,
) -> Result<model::GetConsoleOutputResult> {
    let id = input.instance_id;
    ids::INSTANCE.check(&id)?;
    let snapshot = handlers.store.snapshot();
    snapshot.get::<Instance>(&ctx.account, &ctx.region, &id).ok_or_else(|| ids::INSTANCE.missing(&id))?;
    let host = handlers.host.clone();
    let instance_id = id.clone();
    let output =
        tokio::task::spawn_blocking(move || host.console_output(&instance_id)).await.unwrap_or_default();
    Ok(model::GetConsoleOutputResult {
        instance_id: Some(id),
        timestamp: Some(output.as_ref().map_or(ctx.now, |output| output.timestamp)),
        output: output.map(|output| BASE64.encode(output.bytes)),
    })
}

/// `GetConsoleScreenshot`: what the instance's display shows, as JPEG.
pub async fn get_console_screenshot(
    handlers: &Handlers,
    ctx: &Context,
    input: model::GetConsoleScreenshotRequest,
) -> Result<model::GetConsoleScreenshotResult> {
    let id = input.instance_id;
    ids::INSTANCE.check(&id)?;
    let snapshot = handlers.store.snapshot();
    let instance =
        snapshot.get::<Instance>(&ctx.account, &ctx.region, &id).ok_or_else(|| ids::INSTANCE.missing(&id))?;
    if instance.status.state != InstanceState::Running {
        return Err(Error::new("IncorrectInstanceState", format!("The instance '{id}' is not running.")));
    }
    if ctx.dry_run {
        return Err(Error::dry_run());
    }
    match handlers.host.clone().screen(id.clone(), input.wake_up.unwrap_or(false)).await {
        Screen::Jpeg(picture) => Ok(model::GetConsoleScreenshotResult {
            image_data: Some(BASE64.encode(picture)),
            instance_id: Some(id),
        }),
        Screen::None => Err(unsupported(format!("The instance '{id}' has no display."))),
        Screen::Failed => Err(Error::internal("The display cannot be read.")),
    }
}
