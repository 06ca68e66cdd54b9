"""Videos, as the stock model sees them when every frame is a picture of one prompt."""

import numpy as np
import pytest
import torch
from qrealign_tools import assert_close, card_id, gradient, load, pictures, tensor
from tiny_qwen import Official, write_checkpoint

from tastemaker import load_scorer
from tastemaker.ranking import ReferenceStatistics
from tastemaker.scorers import Ensemble


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="module")
def official(folder):
    return Official.load(folder)


@pytest.fixture(scope="module")
def scorer(folder):
    return load(folder)


def official_video(official, frames):
    """Upstream's preparation: 8 uniform frames, the longer side at most 448, every one a picture."""
    chosen = [frames[round(float(i))] for i in np.linspace(0, len(frames) - 1, 8)]
    resized = []
    for frame in chosen:
        width, height = frame.size
        if max(width, height) > 448:
            scale = 448 / max(width, height)
            frame = frame.resize((max(1, int(width * scale)), max(1, int(height * scale))))
        resized.append(frame)
    return official.score(resized, "video")


@pytest.mark.parametrize(("count", "size"), [(8, (256, 256)), (20, (270, 480)), (3, (500, 300))])
def test_video_equals_the_stock_model_on_its_frames(scorer, official, count, size):
    frames = pictures([size] * count, seed=count)
    video = torch.stack([tensor(frame) for frame in frames])
    assert_close(scorer.score_video(video[None]), [official_video(official, frames)])


def test_videos_in_a_batch_score_as_alone(scorer):
    videos = torch.rand(2, 8, 3, 256, 256)
    alone = torch.cat([scorer.score_video(video[None]) for video in videos])
    assert_close(scorer.score_video(videos), alone)
    assert gradient(scorer.score_video, videos[:1, :2]).norm() > 0


def test_video_limits_are_switchable(folder, official):
    frames = pictures([(300, 480)] * 3)
    video = torch.stack([tensor(frame) for frame in frames])[None]
    scorer = load(folder, task="video", video_frames=None, video_max_side=None)
    assert_close(scorer.score_video(video), [official.score(frames, "video")])
    one = load(folder, task="video", video_frames=1, video_max_side=None)
    assert_close(one.score_video(video), [official.score(frames[:1], "video")])
    # A still is a video of one frame.
    assert_close(one.score(frames[:1]), one.score_video(video[:, :1]))
    assert len({card_id(s) for s in (scorer, one, load(folder, task="video"))}) == 3
    assert one.rendered_prompt.count("<|image_pad|>") == 1
    assert load(folder, task="video").rendered_prompt.count("<|image_pad|>") == 8


def test_bad_frames_are_refused(scorer):
    with pytest.raises(ValueError, match=r"frames must be \[B, T, 3, H, W\]"):
        scorer.score_video(torch.rand(8, 3, 64, 64))
    with pytest.raises(ValueError, match=r"got \[1, 0, 3, 64, 64\]"):
        scorer.score_video(torch.rand(1, 0, 3, 64, 64))
    with pytest.raises(TypeError, match="uint8 or floating point"):
        scorer.score_video(torch.zeros(1, 8, 3, 64, 64, dtype=torch.int64))


def test_another_number_of_frames_shares_the_weights(folder, scorer):
    video = torch.rand(1, 12, 3, 64, 96)
    for count in (3, None):
        other = scorer.with_video_frames(count)
        assert_close(other.score_video(video), load(folder, video_frames=count).score_video(video))
        assert other.levels is scorer.levels and card_id(other) != card_id(scorer)
    assert card_id(scorer.with_video_frames(8)) == card_id(scorer)
    assert not scorer.judges_frames_alone
    with pytest.raises(ValueError, match="at least 1"):
        scorer.with_video_frames(0)


def test_an_ensemble_hands_the_number_of_frames_on(scorer):
    nano = load_scorer("nano")
    both = Ensemble([nano, scorer], [ReferenceStatistics(0.0, 1.0, 9)] * 2, [1, 3])
    video = torch.rand(1, 12, 3, 64, 96)
    expected = nano.score_video(video) / 4 + scorer.with_video_frames(3).score_video(video) * 3 / 4
    assert_close(both.with_video_frames(3).score_video(video), expected)
    assert not both.judges_frames_alone
    assert Ensemble([nano], [ReferenceStatistics(0.0, 1.0, 9)]).judges_frames_alone
