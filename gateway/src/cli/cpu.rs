//! `cairn cpu`.

use super::access::{Need, with_access};
use super::args::Global;
use super::output::answer;
use crate::admin::types::{ChangeCpu, Cpu};
use crate::error::GatewayError;
use crate::human::counted;
use cairn_engine::CpuBudget;

pub(super) async fn run(global: &Global, budget: Option<CpuBudget>) -> Result<(), GatewayError> {
    let work = async |access: &super::access::Access| match budget {
        Some(budget) => access.client.change_cpu(ChangeCpu { budget }).await,
        None => access.client.cpu().await,
    };
    // What is configured can be told without the keys.
    let need = if budget.is_some() { Need::Catalog } else { Need::Tell };
    let cpu = with_access(global, need, work).await?;
    answer(global.json, &cpu, |cpu| match budget {
        Some(_) => changed(cpu),
        None => format!("{}\n", described(cpu)),
    })
}

/// The budget and what it comes to, on one line.
pub(super) fn described(cpu: &Cpu) -> String {
    let budget = cpu.budget.name();
    let (Some(threads), Some(cores)) = (cpu.threads, cpu.cores) else { return format!("budget {budget}") };
    let threads = counted(threads, "thread");
    let cores = counted(cores, "core");
    if cpu.raised {
        return format!(
            "budget {budget}, raised while the log is nearly full or somebody waits for the pool: {threads} on {cores}"
        );
    }
    format!("budget {budget}: {threads} on {cores}")
}

fn changed(cpu: &Cpu) -> String {
    let budget = cpu.budget.name();
    format!(
        "{}\nThis lasts until the gateway ends; to keep it, write budget = \"{budget}\" under [cpu] in cairn.toml.\n",
        described(cpu)
    )
}
