"""What a batch does with images of a memory."""
import torch

from clstudy.data.replay_buffer import ReplayBuffer


def test_joining_puts_images_of_a_memory_at_the_end(batch):
    joined = batch.join(batch.image[:2] / 2, (4, 1), (20, 21))
    assert joined.labels == (*batch.labels, 4, 1) and joined.index == (*batch.index, 20, 21)
    assert joined.replayed == 2
    assert torch.equal(joined.image, torch.cat([batch.image, batch.image[:2] / 2]))
    assert joined.join(batch.image[:1], (0,), (22,)).replayed == 3


def test_joining_a_draw_of_no_image_gives_the_batch_itself(batch):
    assert batch.join(*ReplayBuffer(5).draw(3)) is batch  # empty still
    memory = ReplayBuffer(5)
    memory.add(batch)
    assert batch.join(*memory.draw(0)) is batch
    assert batch.join(*memory.draw(3)).replayed == 3
