"""The tab of runs is built with a store and without."""

import asyncio

import gradio as gr
import pytest

from lushan.serving.page import runs_tab
from lushan.serving.page.texts import Texts
from tests.unit.serving.page.conftest import MakeStudio


@pytest.mark.parametrize(("has_store", "num_timers"), [(True, 1), (False, 0)])
def test_runs_are_looked_for_only_where_there_is_a_store(
    has_store: bool, num_timers: int, make_studio: MakeStudio, english: Texts
) -> None:
    studio = make_studio()
    if not has_store:
        studio.app.state.store = None

    async def build() -> gr.Blocks:  # gradio wants a loop that runs
        with gr.Blocks(analytics_enabled=False) as page:
            runs_tab.build([page.load], studio, english)
        return page

    blocks = asyncio.run(build()).blocks.values()
    assert sum(isinstance(each, gr.Timer) for each in blocks) == num_timers
