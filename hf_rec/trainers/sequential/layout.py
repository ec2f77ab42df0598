"""What has to be settled about a model before it trains: what a sample is, and which catalog it belongs to."""

from hf_rec.data.catalog import Catalog
from hf_rec.data.item_batches import LabelLayout
from hf_rec.models.sequence.base import SequencePreTrainedModel
from hf_rec.trainers.sequential.config import SequentialConfig


def label_layout(model: SequencePreTrainedModel, args: SequentialConfig) -> LabelLayout:
    """What a sample is for this model, as `samples` of [`SequentialConfig`] says."""
    if args.samples == "sequences" and not model.causal and not model.masked:
        raise ValueError(
            f"`samples='sequences'` needs a causal model: in {type(model).__name__} every position sees the events "
            "after it, so all but the last would be trained to copy their label. Use 'prefixes'."
        )
    by_model: LabelLayout = "masked" if model.masked else "sequences" if model.causal else "prefixes"
    layout = by_model if model.masked or args.samples == "auto" else args.samples
    if args.shortest_prefix > 1 and layout != "prefixes":
        raise ValueError(
            f"`shortest_prefix` is {args.shortest_prefix}, but {type(model).__name__} is trained on whole rows here. "
            "Leave it out, or set `samples='prefixes'`."
        )
    return layout


def tie_to_catalog(model: SequencePreTrainedModel, catalog: Catalog | None) -> None:
    """Ties the model to its catalog, or refuses another one."""
    if catalog is None:
        return
    catalog.check_made_for(model.config.num_items, model.config.catalog_sha256)
    model.config.catalog_sha256 = catalog.sha256
