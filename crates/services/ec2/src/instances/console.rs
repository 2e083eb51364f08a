//! `GetConsoleOutput`.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use haar_api::Context;
use haar_records::ec2::Instance;

use crate::error::Result;
use crate::handlers::Handlers;
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
