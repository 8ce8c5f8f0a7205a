"""Flow of `bench.load`: empty tasks, so that only the server is loaded."""

from prefect import flow, get_run_logger, task
from prefect.task_runners import ThreadPoolTaskRunner


@task(persist_result=True, cache_key_fn=lambda context, _parameters: str(context.task_run.id))
def nothing(number: int) -> int:
    get_run_logger().info("number %d", number)
    return number


@flow(name="load", task_runner=ThreadPoolTaskRunner(max_workers=4))  # type: ignore[arg-type]
def load(tasks: int) -> int:
    """Run tasks like those of this project: four in parallel, with a log line and a persisted result each."""
    return sum(nothing.map(range(tasks)).result())
