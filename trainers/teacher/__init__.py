"""What a teacher kept on disk for every student: in full, its likeliest classes, or draws."""

from trainers.teacher.forms import Form, Full, Sampled, TopK
from trainers.teacher.outputs import TeacherOutputs, kept_outputs, outputs_fingerprint, outputs_on, teacher_outputs
from trainers.teacher.store import Block, Outputs, OutputsWriter, open_outputs, write_outputs

__all__ = [
    "Block",
    "Form",
    "Full",
    "Outputs",
    "OutputsWriter",
    "Sampled",
    "TeacherOutputs",
    "TopK",
    "kept_outputs",
    "open_outputs",
    "outputs_fingerprint",
    "outputs_on",
    "teacher_outputs",
    "write_outputs",
]
