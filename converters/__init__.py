"""From the formats that models come in to ``.dcz``, and back.

    a source                                        a sink
    safetensors.SafetensorsSource   --+         +-- container.DczSink
    pytorch.PyTorchSource             |         |
    huggingface.HuggingFaceSource     +-- ... --+-- safetensors.SafetensorsSink
    container.DczSource             --+         +-- decoding.py: a folder

base.py says what a source and a sink are, conversion.py and decoding.py pick them and let the
tensors flow, one at a time.
"""

from __future__ import annotations
